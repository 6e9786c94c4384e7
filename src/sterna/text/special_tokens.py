"""Which special tokens a model folder names, as text and as ids.

In: a folder with any of tokenizer_config.json, special_tokens_map.json, generation_config.json,
mlc-chat-config.json, config.json. Out: `SpecialTokens`. Does not know the vocabulary: the caller
turns texts into ids and checks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.base.errors import TokenizerError
from sterna.text.json_file import read_optional

NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

ID_FILES = ("generation_config.json", "mlc-chat-config.json", "config.json")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """`texts`: name -> token text. `stated`: names the files mention at all, `null` included.

    `bos_ids` and `eos_ids` are the numbers in the generation or model configuration.
    """

    texts: Mapping[str, str]
    stated: frozenset[str]
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...]


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Collect special tokens; tokenizer_config.json wins over special_tokens_map.json."""
    merged = read_optional(folder / "special_tokens_map.json")
    merged |= read_optional(folder / "tokenizer_config.json")
    stated = frozenset(name for name in NAMES if name in merged)
    texts = {name: token_text(merged[name], name) for name in NAMES if merged.get(name) is not None}
    return SpecialTokens(texts, stated, _ids(folder, "bos_token_id"), _ids(folder, "eos_token_id"))


def token_text(value: object, name: str) -> str:
    """The text of a token that is written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if not isinstance(value, str):
        raise TokenizerError(f"{name} must be a string or an object with 'content', not {value!r}")
    return value


def _ids(folder: Path, key: str) -> tuple[int, ...]:
    """The ids under `key` in the first file that states them: an int or a list of ints."""
    for name in ID_FILES:
        value: Any = read_optional(folder / name).get(key)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(item) is int for item in ids):
            raise TokenizerError(f"{folder / name}: {key} must be an id or a list of ids")
        return tuple(item for item in ids if item >= 0)
    return ()
