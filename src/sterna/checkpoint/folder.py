"""A Hugging Face model folder: config, tokenizer files, and lazy tensors from every shard.

In: a folder. Out: Checkpoint. Reads headers only; does not know what the tensors are for. Files
may be links (the hub's cache is made of them); names inside files may not leave the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sterna.base.errors import CheckpointError, MissingTensor, UnsafeFile
from sterna.checkpoint.config import (
    field,
    read_config,
    read_errors,
    read_generation_config,
    read_json,
)
from sterna.checkpoint.names import plain_file_name
from sterna.checkpoint.safetensors import open_safetensors
from sterna.checkpoint.tensor import TensorRef

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "rwkv_vocab_v20230424.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model folder. `tensors` keeps file order; nothing but headers has been read."""

    folder: Path
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, TensorRef]
    tokenizer_files: tuple[str, ...]


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open a Hugging Face folder with `model.safetensors`, or shards and their index.

    Raises CheckpointError when something is absent, MissingTensor for a shard or tensor that the
    index names in vain, UnsafeFile for pickles, escaping paths and headers that lie.
    """
    with read_errors(folder):
        return _open(Path(folder))


def _open(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give a model folder or HF://user/repo")
    config = read_config(folder)
    return Checkpoint(
        folder=folder,
        config=config,
        generation_config=read_generation_config(folder),
        tensors=MappingProxyType(_open_tensors(folder)),
        tokenizer_files=tuple(name for name in TOKENIZER_FILES if (folder / name).is_file()),
    )


def _open_tensors(folder: Path) -> dict[str, TensorRef]:
    if (folder / SINGLE).is_file():
        return open_safetensors(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    raise _no_weights(folder)


def _open_shards(folder: Path) -> dict[str, TensorRef]:
    index = folder / INDEX
    weight_map = field(read_json(index), "weight_map", dict, str(index))
    files = {name: plain_file_name(file, index) for name, file in weight_map.items()}
    shards = {file: _open_shard(folder, file) for file in dict.fromkeys(files.values())}
    for name, file in files.items():
        if name not in shards[file]:
            raise MissingTensor(f"{index} says that tensor {name!r} is in {file}, but it is not")
    return _merge(shards, files, index)


def _open_shard(folder: Path, file: str) -> dict[str, TensorRef]:
    if not (folder / file).is_file():
        raise MissingTensor(
            f"the shard {file}, which {INDEX} names, is not in {folder}; download it again"
        )
    return open_safetensors(folder / file)


def _merge(
    shards: dict[str, dict[str, TensorRef]], files: dict[str, str], index: Path
) -> dict[str, TensorRef]:
    """Join the shards. A tensor beyond the index comes along, for the model to name or refuse."""
    tensors: dict[str, TensorRef] = {}
    for file, refs in shards.items():
        for name, ref in refs.items():
            if files.get(name, file) != file:
                continue  # the index chose another shard's copy
            if name in tensors:
                raise UnsafeFile(
                    f"tensor {name!r} is in {tensors[name].path.name} and in {file}, and {index} "
                    "does not say which one counts"
                )
            tensors[name] = ref
    return tensors


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in names if name.endswith(_PICKLES) and _is_weights(name)]
    others = [name for name in names if name.endswith(".safetensors")]
    if pickles and not others:
        return UnsafeFile(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run any code when "
            "read, so Sterna never reads it; convert it to safetensors where it was trained "
            "(model.save_pretrained(folder, safe_serialization=True)) or with the hub's "
            "safetensors converter"
        )
    found = f"found {', '.join(others[:3])}" if others else "found no *.safetensors at all"
    return MissingTensor(f"{folder} has neither {SINGLE} nor {INDEX}; {found}")


def _is_weights(name: str) -> bool:
    return name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")
