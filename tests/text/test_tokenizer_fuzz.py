"""Any damage to a tokenizer's files: it loads and encodes, or one sentence says why not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import MERGES, byte_fallback_json, byte_level_json

from sterna.base.errors import Error
from sterna.text.decoding import ALPHABET
from sterna.text.tokenizer import Tokenizer

TEXT = "hello world é <|bos|> 日本"
CONFIG: dict[str, Any] = {
    "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "add_bos_token": True,
    "added_tokens_decoder": {"265": {"content": "<|endoftext|>", "special": True}},
}  # fmt: skip
VALUES = (
    st.none() | st.booleans() | st.integers(-3, 1 << 70) | st.floats() | st.text(max_size=6)
    | st.lists(st.integers(0, 9), max_size=2) | st.just({}) | st.just({"type": "Sequence"})
    | st.sampled_from(["BPE", "Unigram", "ByteLevel", "Replace", "(a+)+$", "[", "Ġ"])
)  # fmt: skip


def one_sentence(folder: Path) -> bool:
    """Whether the folder's tokenizer works, or is refused in a line of bounded length."""
    try:
        tokenizer = Tokenizer.load(folder)
        ids = tokenizer.encode(TEXT)
        tokenizer.decode(ids)
    except Error as error:
        return "\n" not in str(error) and len(str(error)) < 2000
    return all(0 <= token < tokenizer.vocab_size for token in ids)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value, but for all tokens of a vocabulary."""
    found: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        at = pending.pop()
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        for key in keys[:20]:
            found.append((at, key))
            if isinstance(at[key], dict | list):
                pending.append(at[key])
    return found


def changed(data: st.DataObject, whole: Any) -> Any:
    """A copy in which a few values are others, or gone."""
    value = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        among = places(value)
        if not among:
            break
        container, key = among[data.draw(st.integers(0, len(among) - 1))]
        if data.draw(st.booleans()):
            container[key] = data.draw(VALUES)
        else:
            del container[key]
    return value


def folder_of(factory: pytest.TempPathFactory, title: str) -> Path:
    folder = factory.getbasetemp() / title
    folder.mkdir(exist_ok=True)
    return folder


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data(), fallback=st.booleans())
def test_tokenizer_json(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, fallback: bool
) -> None:
    folder = folder_of(tmp_path_factory, "fuzz-json")
    whole = byte_fallback_json() if fallback else byte_level_json()
    (folder / "tokenizer.json").write_text(json.dumps(changed(data, whole)))
    assert one_sentence(folder)


def write_vocab(folder: Path) -> None:
    tokens = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES)]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))


def test_the_files_that_are_damaged_work_whole(tmp_path: Path) -> None:
    write_vocab(tmp_path)
    assert Tokenizer.load(tmp_path).encode("hello") == [265, 259]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_vocab_and_merges(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = folder_of(tmp_path_factory, "fuzz-vocab")
    write_vocab(folder)
    path = folder / data.draw(st.sampled_from(["vocab.json", "merges.txt"]))
    raw = bytearray(path.read_bytes())
    end = data.draw(st.integers(1, len(raw)))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[:end])
    assert one_sentence(folder)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_tokenizer_config(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = folder_of(tmp_path_factory, "fuzz-config")
    write_vocab(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(changed(data, CONFIG)))
    assert one_sentence(folder)
