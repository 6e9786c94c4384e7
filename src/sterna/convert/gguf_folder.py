"""A GGUF file as a Hugging Face folder without weights: its words in the files that others read.

In: what the user named. Out: a folder: the same, or one in the cache with config.json,
tokenizer.json and so on, and a note of the file whose weights they describe. Everything behind
this sees folders only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sterna.base.cache import cache_dir, key
from sterna.base.errors import CheckpointError, UsageError
from sterna.base.version import file_state, source_state
from sterna.checkpoint.beside import replace_files
from sterna.checkpoint.config import field, read_errors, read_json
from sterna.checkpoint.gguf import GgufFile, open_gguf
from sterna.convert.gguf_model import config_json, file_type, generation_config_json
from sterna.convert.gguf_vocabulary import (
    greedy_vocabulary,
    is_greedy,
    tokenizer_config,
    tokenizer_json,
)
from sterna.text.greedy import FILE

NOTE = "gguf.json"
_KEY_DIGITS = 16


def source_folder(named: Path) -> Path:
    """The folder to convert: `named` itself, or the one that a GGUF file unfolds to.

    A folder that holds GGUF files and no config.json stands for its file, if that is one model.
    Raises what `open_gguf`, `config_json` and `tokenizer_json` do, UsageError where several files
    could be meant.
    """
    with read_errors(named):
        if named.is_file():
            return _unfolded(named)
        if named.is_dir() and not (named / "config.json").is_file():
            files = sorted(path for path in named.glob("*.gguf") if path.is_file())
            models = [
                path for path in files if "-of-" not in path.name or "-00001-of-" in path.name
            ]
            if len(models) == 1:
                return _unfolded(models[0])
            if models:
                raise UsageError(
                    f"{named} holds several GGUF files; give one of them: "
                    f"{', '.join(path.name for path in models[:8])}"
                )
    return named


def noted_file(folder: Path) -> GgufFile | None:
    """The GGUF file that a folder was unfolded from, opened; None for other folders."""
    if not (folder / NOTE).is_file():
        return None
    note = read_json(folder / NOTE)
    path = Path(field(note, "path", str, str(folder / NOTE)))
    if not path.is_file():
        raise CheckpointError(f"{path} is gone; name the file where it is now")
    return open_gguf(path)


def _unfolded(path: Path) -> Path:
    path = path.absolute()
    state = file_state(path, path.name)
    identity = key(str(path), state, *source_state("checkpoint", "convert", "base"))
    name = path.stem.split("-00001-of-")[0]
    folder = cache_dir("gguf") / identity[:_KEY_DIGITS] / name
    if (folder / NOTE).is_file():
        return folder
    file = open_gguf(path)
    contents = {
        "config.json": config_json(file),
        "generation_config.json": generation_config_json(file),
        "tokenizer_config.json": tokenizer_config(file.metadata, str(path)),
        NOTE: {"path": str(path), "file_type": file_type(file)},
    }
    written = {name: _json(value) for name, value in contents.items()}
    if is_greedy(file.metadata):
        written[FILE] = greedy_vocabulary(file.metadata, str(path)).encode()
    else:
        written["tokenizer.json"] = _json(tokenizer_json(file.metadata, str(path)))
    folder.parent.mkdir(parents=True, exist_ok=True)
    replace_files(folder, written)
    return folder


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
