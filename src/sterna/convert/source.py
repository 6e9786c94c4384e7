"""What is converted: a Hugging Face folder or a GGUF file whose config a family understands.

In: the folder and the options `--quantization` and `--model-type`. Out: Source, read and checked
but for its tensors, which `tensors.py` holds against the config.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna import models
from sterna.base.errors import CheckpointError, UsageError
from sterna.checkpoint.config import read_config, read_errors, read_generation_config
from sterna.checkpoint.folder import TOKENIZER_FILES
from sterna.checkpoint.mlc_index import INDEX, OLD_INDEX
from sterna.checkpoint.pooling import read_pooling
from sterna.convert.gguf_folder import source_folder
from sterna.convert.lora import merged
from sterna.convert.open_tensors import (
    STORAGE_KEYS,
    format_name,
    is_quantized,
    open_tensors,
    storage_of,
)
from sterna.convert.stacked import unstacked
from sterna.convert.stored import Tensors, as_stored, plain_base
from sterna.quantize.recipe import Quantization, Recipe
from sterna.quantize.scheme import SCHEMES, Scheme, scheme

STORED = "stored"  # the quantization that keeps weights as the source has them


@dataclass(frozen=True, slots=True)
class Source:
    """A model to convert. `config` is its config.json, but for how its weights are stored.

    `effective` is what is computed with: the same with the model type that was asked for.
    `storage` is what config.json says of stored weights; `tensors` are the weights where they had
    to be opened to know the quantization.
    """

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    model_type: str
    quantization: Quantization
    tokenizer_files: tuple[str, ...]
    storage: dict[str, Any]
    opened: Tensors | None = None

    @property
    def effective(self) -> dict[str, Any]:
        return {**self.config, "model_type": self.model_type}

    @property
    def tensors(self) -> Tensors:
        """The weights as they are stored."""
        if self.opened is not None:
            return self.opened
        return _tensors(self.folder, self.effective, self.storage, None)


def read_source(
    folder: Path,
    quantization: str,
    model_type: str | None,
    *,
    kept: Recipe | None = None,
    lora: Path | None = None,
) -> Source:
    """Read a folder's JSON files and ask the family whether it can compute this model.

    `kept` is the recipe of an output that holds the model already, which "stored" then means;
    `lora` is an adapter's folder, to be merged into the weights.
    Raises UsageError for options that make no sense, CheckpointError for a folder that is no model
    and UnsupportedModel for one outside this version.
    """
    wanted = None if quantization == STORED else _writable(quantization)
    folder = source_folder(Path(folder))
    with read_errors(folder):
        _refuse_converted(folder)
        config = read_config(folder) | read_pooling(folder)
        storage = storage_of(folder, config)
        config = {key: value for key, value in config.items() if key not in STORAGE_KEYS}
        generation_config = read_generation_config(folder)
        files = tuple(name for name in TOKENIZER_FILES if (folder / name).is_file())
    if kept is not None and wanted is None:
        quantized: Quantization = kept
        tensors = None
    else:
        own = {**config, "model_type": _model_type(config, model_type)}
        tensors = _tensors(folder, own, storage, lora) if lora or not wanted else None
        quantized = wanted or _kept(format_name(folder, storage), own, tensors or {})
    source = Source(
        folder,
        config,
        generation_config,
        _model_type(config, model_type),
        quantized,
        files,
        storage,
        tensors,
    )
    models.family(source.effective).read_config(source.effective)
    return source


def _tensors(
    folder: Path, config: dict[str, Any], storage: dict[str, Any], lora: Path | None
) -> Tensors:
    tensors = unstacked(open_tensors(folder, storage), models.family(config).STACKED)
    return tensors if lora is None else merged(tensors, lora)


def default_quantization(named: Path) -> str:
    """What a source is converted to where nobody says: kept if it is quantized, else 4 bits.

    4 bits only where their groups of 32 fill every row of the model; else float16.
    """
    folder = source_folder(named)
    config = read_config(folder)
    if is_quantized(folder, config):
        return STORED
    rows = [config.get("hidden_size"), config.get("intermediate_size")]
    if "text_config" in config:
        read = models.family(config).read_config(config)
        rows = [read.hidden_size, read.intermediate_size]
    group = SCHEMES["q4f16_1"].group
    fits = all(isinstance(size, int) and size % group == 0 for size in rows)
    return "q4f16_1" if fits else "q0f16"


def _kept(name: str, config: dict[str, Any], tensors: Tensors) -> Quantization:
    """The recipe of the weights as they are; a scheme where they are plain and all of one dtype."""
    tensors = _with_experts(config, tensors)
    schemes = {tensor.own_scheme for tensor in tensors.values()}
    (first, *others) = schemes or {None}
    if first is not None and not others and not first.is_quantized:
        return first
    return as_stored(name, tensors, plain_base(tensors))


def _with_experts(config: dict[str, Any], tensors: Tensors) -> Tensors:
    """With what all experts of a layer are alike under the name of the weight that holds them."""
    found = dict(tensors)
    for path, names in models.expert_weights(config).items():
        parts = [found.pop(name) for name in names if name in found]
        if len({part.own_scheme for part in parts}) == 1:
            found[path] = parts[0]
    return found


def _writable(quantization: str) -> Scheme:
    wanted = scheme(quantization)
    if quantization not in SCHEMES:
        raise UsageError(
            f"quantization {quantization!r} is MLC's, which Sterna reads but does not write; "
            f"possible: {', '.join(SCHEMES)}, and {STORED!r} to keep weights as they are"
        )
    return wanted


def _refuse_converted(folder: Path) -> None:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a model folder or HF://user/repo")
    if any((folder / name).is_file() for name in (INDEX, OLD_INDEX)):
        raise UsageError(
            f"{folder} is a converted model already: use it as it is, or give the Hugging Face "
            "folder it was made from, since quantizing twice would lose accuracy twice"
        )


def _model_type(config: dict[str, Any], asked: str | None) -> str:
    found = config.get("model_type")
    known = models.families()
    if asked is None or asked == found:
        models.family(config)  # says what is wrong with a model_type that is absent or unknown
        return str(found)
    if asked not in known:
        raise UsageError(f"model type {asked!r} is not known; known: {', '.join(known)}")
    if found in known:
        raise UsageError(
            f"model type {asked!r} was asked for, but config.json says {found!r}; leave the "
            "option out to follow the file"
        )
    return asked
