"""What is converted: a Hugging Face folder whose config a family understands.

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
from sterna.quantize.scheme import SCHEMES, Scheme, scheme


@dataclass(frozen=True, slots=True)
class Source:
    """A model to convert. `config` is its config.json as it stands.

    `effective` is what is computed with: the same with the model type that was asked for.
    """

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    model_type: str
    scheme: Scheme
    tokenizer_files: tuple[str, ...]

    @property
    def effective(self) -> dict[str, Any]:
        return {**self.config, "model_type": self.model_type}


def read_source(folder: Path, quantization: str, model_type: str | None) -> Source:
    """Read a folder's JSON files and ask the family whether it can compute this model.

    Raises UsageError for options that make no sense, CheckpointError for a folder that is no model
    and UnsupportedModel for one outside this version.
    """
    wanted = _writable(quantization)
    folder = Path(folder)
    with read_errors(folder):
        _refuse_converted(folder)
        config = read_config(folder)
        generation_config = read_generation_config(folder)
        files = tuple(name for name in TOKENIZER_FILES if (folder / name).is_file())
    source = Source(
        folder, config, generation_config, _model_type(config, model_type), wanted, files
    )
    models.family(source.effective).read_config(source.effective)
    return source


def _writable(quantization: str) -> Scheme:
    wanted = scheme(quantization)
    if quantization not in SCHEMES:
        raise UsageError(
            f"quantization {quantization!r} is MLC's, which Sterna reads but does not write; "
            f"possible: {', '.join(SCHEMES)}"
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
