"""Whichever way a folder holds its weights: opened, named as checkpoints name them.

In: a source folder and its config.json. Out: StoredTensors. The configuration names the format;
one that it does not name is plain safetensors. One row a format: what is not in the table is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sterna.base.errors import UnsupportedModel
from sterna.checkpoint.config import read_json
from sterna.checkpoint.folder import open_checkpoint
from sterna.checkpoint.tensor import TensorRef
from sterna.convert.formats import (
    awq,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gguf,
    gptq,
    mlx,
    mxfp4,
)
from sterna.convert.gguf_folder import NOTE, noted_file
from sterna.convert.gguf_model import file_type
from sterna.convert.stored import StoredTensor, plain

Refs = Mapping[str, TensorRef]
Reader = Callable[[Refs, Mapping[str, Any]], dict[str, StoredTensor]]

# Keys of config.json that describe how weights are stored; the folder's recipe takes their place.
STORAGE_KEYS = ("quantization_config", "compression_config", "quantization")

READERS: dict[str, Reader] = {
    "gptq": gptq.stored_tensors,
    "awq": awq.stored_tensors,
    "compressed-tensors": compressed_tensors.stored_tensors,
    "fp8": fp8.stored_tensors,
    "bitsandbytes": bitsandbytes.stored_tensors,
    "mlx": mlx.stored_tensors,
    "mxfp4": mxfp4.stored_tensors,
}


# Where the first versions of AutoGPTQ and AutoAWQ said it, and what the formats are called.
BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def storage_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json, or a file beside it, says of how weights are stored."""
    found = {key: config[key] for key in STORAGE_KEYS if config.get(key)}
    for name, method in BESIDE.items():
        if not found and (folder / name).is_file():
            return {STORAGE_KEYS[0]: {"quant_method": method, **read_json(folder / name)}}
    return found


def is_quantized(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether some program has quantized the folder's weights already, as far as it says."""
    return (folder / NOTE).is_file() or bool(storage_of(folder, config))


def open_tensors(folder: Path, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight of the folder.

    Raises UnsupportedModel for a format or a variation of one that is not read, and what opening
    the files does.
    """
    file = noted_file(folder)
    if file is not None:
        return gguf.stored_tensors(file)
    refs = open_checkpoint(folder).tensors
    method, section = _method(config)
    if method is None:
        return {name: plain(ref) for name, ref in refs.items()}
    reader = READERS.get(method)
    if reader is None:
        raise UnsupportedModel(
            f"{folder} is quantized by {method[:80]!r}, which Sterna does not read; it reads "
            f"{', '.join(READERS)}, GGUF, and weights that are not quantized"
        )
    return reader(refs, section)


def format_name(folder: Path, config: Mapping[str, Any]) -> str:
    """What the folder's format is called, for the name of its recipe."""
    file = noted_file(folder)
    if file is not None:
        return f"gguf-{file_type(file)}"
    return _method(config)[0] or "plain"


def _method(config: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """The format's name and its section.

    MLX has a section of its own and no name; newer versions repeat it as quantization_config.
    """
    own = config.get("quantization")
    if isinstance(own, Mapping) and own and config.get(STORAGE_KEYS[0]) in (None, own):
        return "mlx", own
    for key in STORAGE_KEYS[:2]:
        section = config.get(key)
        if section and not isinstance(section, Mapping):
            raise UnsupportedModel(f"{key} in config.json is {section!r:.60}, not an object")
        if isinstance(section, Mapping) and section:
            method = section.get("quant_method", "compressed-tensors" if "config_groups" in section
                                 else None)  # fmt: skip
            if not isinstance(method, str):
                raise UnsupportedModel(f"{key} in config.json names no quant_method")
            return method, section
    return None, {}
