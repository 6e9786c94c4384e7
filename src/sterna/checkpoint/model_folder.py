"""A converted model as the compiler wants it: its config in Hugging Face's words, and its tensors.

In: a folder that `convert_weight` and `gen_config` wrote, or one that MLC did. Out: ModelFolder.
`sterna.json` says what the model is: the source's own config.json, what was overridden on the way,
and the fingerprint that ties a compiled library to it; MLC's folders have a subset of the config
under names of their own. Knows no families and no schemes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sterna.base.errors import CheckpointError
from sterna.checkpoint.beside import recover
from sterna.checkpoint.config import field, read_errors, read_json
from sterna.checkpoint.mlc import CONFIG, read_mlc_folder
from sterna.checkpoint.mlc_index import INDEX, OLD_INDEX
from sterna.checkpoint.tensor import TensorRef

STERNA = "sterna.json"
FORMAT = 1  # raised by every change that an older reader could misread

# What MLC's model_config calls otherwise, and what it holds besides the model.
_RENAMED = {
    "position_embedding_base": "rope_theta",
    "context_window_size": "max_position_embeddings",
    "sliding_window_size": "sliding_window",
}
_RUN_OPTIONS = frozenset(
    "prefill_chunk_size tensor_parallel_shards pipeline_parallel_stages max_batch_size "
    "disaggregation dtype kv_quantization".split()
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """An opened model. `config` has Hugging Face's keys; `tensors` have MLC's names.

    `tensors` is empty where the weights were not asked for; `recipe` says which scheme each weight
    has where the quantization's name does not.
    """

    folder: Path
    chat_config: dict[str, Any]
    config: dict[str, Any]
    model_type: str
    quantization: str
    fingerprint: str
    tensors: Mapping[str, TensorRef]
    recipe: dict[str, Any] | None = None


def open_model(folder: Path, *, weights: bool = True) -> ModelFolder:
    """Open a converted model; `weights=False` does not look at the weights, nor for them.

    Raises CheckpointError for a folder that is no converted model or half of one, naming the
    command that completes it, and what `read_mlc_folder` raises.
    """
    with read_errors(folder):
        folder = Path(folder).resolve()
        recover(folder)
        _check_complete(folder, weights)
        sterna = read_sterna(folder)
        chat_config = read_json(folder / CONFIG)
    source = str(folder / (STERNA if sterna else CONFIG))
    model_type = field(sterna or chat_config, "model_type", str, source)
    quantization = field(sterna or chat_config, "quantization", str, source)
    if sterna:
        config = {**field(sterna, "config", dict, source), "model_type": model_type}
        config |= field(sterna, "overrides", dict, source)
        fingerprint = field(sterna, "fingerprint", str, source)
    else:
        config = _huggingface_config(chat_config, model_type, source)
        fingerprint = digest({"quantization": quantization, "config": config})
    tensors = read_mlc_folder(folder).tensors if weights else MappingProxyType({})
    recipe = field(sterna, "recipe", dict, source) if "recipe" in sterna else None
    return ModelFolder(
        folder, chat_config, config, model_type, quantization, fingerprint, tensors, recipe
    )


def read_sterna(folder: Path) -> dict[str, Any]:
    """Read `sterna.json`; {} where the folder has none."""
    path = folder / STERNA
    if not path.is_file():
        return {}
    found = read_json(path)
    if found.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {found.get('format')!r}, this Sterna reads {FORMAT}; convert the "
            "model again, or use the version of Sterna that wrote it"
        )
    return found


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (INDEX, OLD_INDEX))


def _check_complete(folder: Path, weights: bool) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a converted model's folder")
    has_config, has_weights = (folder / CONFIG).is_file(), _has_weights(folder)
    if not has_config and not has_weights:
        raise CheckpointError(
            f"{folder} is no converted model: it has neither {CONFIG} nor {INDEX}; convert one "
            "with `sterna convert_weight` and `sterna gen_config`"
        )
    if not has_config:
        raise CheckpointError(f"{folder} has no {CONFIG}; add it with `sterna gen_config`")
    if weights and not has_weights:
        raise CheckpointError(
            f"{folder} has no weights ({INDEX}); add them with `sterna convert_weight`"
        )


def _huggingface_config(
    chat_config: dict[str, Any], model_type: str, source: str
) -> dict[str, Any]:
    """MLC's model_config under Hugging Face's names; what is -1 or null there is not set."""
    given = field(chat_config, "model_config", dict, source)
    config = {
        str(_RENAMED.get(key, key)): value
        for key, value in given.items()
        if key not in _RUN_OPTIONS and value not in (None, -1)
    }
    return {**config, "model_type": model_type}
