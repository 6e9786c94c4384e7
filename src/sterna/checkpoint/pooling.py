"""What sentence-transformers says beside a checkpoint: how a text's vectors become one.

In: a folder. Out: keys for its config, `sentence_pooling` and `sentence_normalize`; none where
there is no `modules.json`. Modules that would change the vector otherwise are refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.checkpoint.config import read_json, read_json_list

MODULES = "modules.json"
_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}
_NAMES = {"cls": "cls", "lasttoken": "last", "mean": "mean"}  # as newer files spell it


def read_pooling(folder: Path) -> dict[str, Any]:
    """The folder's pooling as keys of a config.

    Raises UnsupportedModel for another pooling or module, CheckpointError for a damaged file.
    """
    if not (folder / MODULES).is_file():
        return {}
    listed = read_json_list(folder / MODULES)
    if not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"{folder / MODULES} must be a list of modules")
    found: dict[str, Any] = {}
    for module in listed:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            found["sentence_pooling"] = _pooling(folder, module.get("path"))
        elif kind == "Normalize":
            found["sentence_normalize"] = True
        elif kind != "Transformer":
            raise UnsupportedModel(
                f"{MODULES} has a module {kind[:60]!r}, which is not supported; supported: "
                "Transformer, Pooling and Normalize"
            )
    if "sentence_pooling" not in found:
        raise UnsupportedModel(f"{folder / MODULES} has no Pooling module: texts give no vectors")
    return found


def _pooling(folder: Path, path: object) -> str:
    if not isinstance(path, str) or "/" in path or "\\" in path or path in ("", ".", ".."):
        raise CheckpointError(f"{MODULES} names no folder beside it for Pooling, but {path!r:.60}")
    file = folder / path / "config.json"
    config = read_json(file)
    modes = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    named = config.get("pooling_mode")
    known = _NAMES.get(named) if isinstance(named, str) else None
    if not modes and known is not None:
        return known
    if len(modes) == 1 and modes[0] in _POOLING:
        return _POOLING[modes[0]]
    raise UnsupportedModel(
        f"{file} asks for {' and '.join(modes) or repr(named)[:60]}, which is not supported; "
        f"supported: one of {', '.join(_POOLING)}"
    )
