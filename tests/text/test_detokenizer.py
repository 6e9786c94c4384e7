"""Streaming: whatever the ids and however they are divided, the text is that of `decode`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import SPECIAL, decoders, write

from sterna.base.errors import RequestError, TokenizerError
from sterna.text.detokenizer import StopStrings, StreamDecoder
from sterna.text.tokenizer import Tokenizer

CHECKED = settings(max_examples=100, derandomize=True, deadline=None)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("decoders")
    return {name: Tokenizer.load(write(folder / name, j)) for name, j in decoders().items()}


def streamed(tokenizer: Tokenizer, chunks: list[list[int]], skip: bool) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    return [*(decoder.put(chunk) for chunk in chunks), decoder.finish()]


@pytest.mark.parametrize("name", decoders())
@CHECKED
@given(data=st.data(), skip=st.booleans())
def test_stream_equals_decode(
    tokenizers: dict[str, Tokenizer], name: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer = tokenizers[name]
    # Some ids lie beyond the vocabulary: padded output layers can yield them.
    ids = st.integers(0, tokenizer.vocab_size + 3)
    late = st.integers(tokenizer.vocab_size - 12, tokenizer.vocab_size)
    chunks = data.draw(st.lists(st.lists(ids | late, max_size=5), max_size=8))
    whole = tokenizer.decode([i for chunk in chunks for i in chunk], skip_special_tokens=skip)
    assert "".join(streamed(tokenizer, chunks, skip)) == whole


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
@CHECKED
@given(text=st.text(max_size=30))
def test_no_half_character_is_ever_emitted(
    tokenizers: dict[str, Tokenizer], name: str, text: str
) -> None:
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(tokenizer, [[i] for i in ids], skip=True)
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_text_comes_as_soon_as_it_is_certain(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte level"]
    ids = tokenizer.encode("hello🙂!", add_special_tokens=False)
    assert streamed(tokenizer, [[i] for i in ids], True) == ["hello", "", "", "", "🙂", "!", ""]


def test_unfinished_character_ends_as_replacement(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte level"]
    ids = tokenizer.encode("🙂", add_special_tokens=False)[:3]
    assert streamed(tokenizer, [ids], True) == ["", "\N{REPLACEMENT CHARACTER}"]


def test_control_tokens_are_hidden_or_shown(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte level"]
    ids = tokenizer.encode("".join(SPECIAL) + "a", add_special_tokens=False, allow_special=True)
    assert "".join(streamed(tokenizer, [ids], True)) == "a"
    assert "".join(streamed(tokenizer, [ids], False)) == "".join(SPECIAL) + "a"


@pytest.mark.parametrize("name", ["byte level", "byte fallback"])
def test_cost_a_token_does_not_grow(tokenizers: dict[str, Tokenizer], name: str) -> None:
    def seconds(count: int) -> float:
        decoder = StreamDecoder(tokenizers[name])
        start = time.process_time()
        for _ in range(count):
            decoder.put([200])  # a continuation byte: the worst case of a run that is held back
        decoder.finish()
        return time.process_time() - start

    assert min(seconds(20_000) for _ in range(3)) < 40 * min(seconds(2_000) for _ in range(3))


@pytest.mark.parametrize(
    "step",
    [
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 1},
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
    ],
)
def test_unknown_decoder_is_refused(tmp_path: Path, step: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match="does not support"):
        Tokenizer.load(write(tmp_path, decoders()["byte level"] | {"decoder": step}))


@pytest.mark.parametrize(
    "name",
    ["Phi-3-mini-128k-instruct", "gpt2-xl"],
)
def test_real_tokenizers_stream(shared: Path, name: str) -> None:
    tokenizer = Tokenizer.load(shared / "configs" / name)
    words = (shared / "tokenizer-goldens" / "vocab-test.inp").read_text(encoding="utf-8")
    ids = tokenizer.encode(words) + list(range(0, tokenizer.vocab_size, 7))
    assert "".join(streamed(tokenizer, [[i] for i in ids], True)) == tokenizer.decode(ids)


def cut(stops: list[str], text: str) -> tuple[str, bool]:
    """The meaning of StopStrings by str.find: the first end wins, then the longer stop."""
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


LETTERS = st.text("ab", max_size=20)


@settings(CHECKED, max_examples=400)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    chunks=st.lists(st.text("abc", max_size=5), max_size=10),
)
def test_stop_strings_equal_find(stops: list[str], chunks: list[str]) -> None:
    stopper = StopStrings(stops)
    out, seen = "", ""
    for chunk in chunks:
        text, stopped = stopper.put(chunk)
        out, seen = out + text, seen + chunk
        expected, found = cut(stops, seen)
        assert stopped == found
        assert expected.startswith(out)
        if not found:  # what is held back may still become a stop: never more than that
            held = seen[len(out) :]
            assert not held or any(stop.startswith(held) for stop in stops)
    assert (out + stopper.finish(), stopper.stopped) == cut(stops, seen)


def test_stop_across_token_borders() -> None:
    stopper = StopStrings(["\n\nUser:", "</s>"])
    assert stopper.put("Hello\n") == ("Hello", False)
    assert stopper.put("\nUs") == ("", False)
    assert stopper.put("e ") == ("\n\nUse ", False)
    assert stopper.put("\n\nUser: more") == ("", True)
    assert stopper.put("more") == ("", True)
    assert stopper.finish() == ""


def test_no_stop_passes_everything() -> None:
    assert StopStrings([]).put("text") == ("text", False)


def test_empty_stop_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopStrings(["a", ""])


def test_adverse_stop_strings_stay_linear() -> None:
    stopper = StopStrings(["a" * 5000 + "b"])
    start = time.process_time()
    for _ in range(200):
        stopper.put("a" * 1000)
    assert time.process_time() - start < 4.0
    assert stopper.put("b") == ("", True)
