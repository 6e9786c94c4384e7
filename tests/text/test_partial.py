"""A vocabulary used in parts: the ids of the whole, whatever the text, and files that lie."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_tokenizers import (
    MERGES,
    SPECIAL,
    added,
    byte_fallback_json,
    byte_level_json,
    word_piece_json,
    write,
)
from tokenizer_goldens import expected, long_text, strings

from sterna.base.errors import TokenizerError
from sterna.engine import loader
from sterna.engine.options import EngineOptions, Mode
from sterna.text import partial, tokenizer
from sterna.text.partial import PartialBackend, divisible
from sterna.text.token_store import open_store
from sterna.text.tokenizer import Tokenizer

PLAIN = {"unk_token": None, "fuse_unk": False}
ALMOST = [  # (model, what else), none of which a part could stand for
    ({"dropout": 0.1}, {}),
    ({"continuing_subword_prefix": "##"}, {"vocab": {"a": 0, "##b": 1, "ab": 2}}),
    ({"end_of_word_suffix": "</w>"}, {}),
    ({"ignore_merges": True}, {"pre_tokenizer": None}),
]


@pytest.fixture(autouse=True)
def small_vocabularies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "SMALLEST_KEPT", 0)


def both(folder: Path, keep_in: Path) -> tuple[Tokenizer, Tokenizer]:
    """The whole, and one that opens what an earlier load has kept."""
    keep_in.mkdir(exist_ok=True)
    Tokenizer.load(folder, keep_in)
    return Tokenizer.load(folder), Tokenizer.load(folder, keep_in)


def backend(loaded: Tokenizer) -> PartialBackend:
    assert isinstance(loaded._backend, PartialBackend)
    return loaded._backend


def same(whole: Tokenizer, part: Tokenizer, text: str) -> list[int]:
    """The ids that both give, in every manner."""
    marked = text.replace("e", "e\x02\x01")
    assert part.encode_marked(marked, "\x02\x01") == whole.encode_marked(marked, "\x02\x01")
    for special, allowed in ((True, False), (True, True), (False, True)):
        ids = whole.encode(text, add_special_tokens=special, allow_special=allowed)
        assert part.encode(text, add_special_tokens=special, allow_special=allowed) == ids
        for skip in (True, False):
            assert part.decode(ids, skip_special_tokens=skip) == whole.decode(
                ids, skip_special_tokens=skip
            )
    return part.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", ["gpt2-xl", "TinyLlama-1.1B-Chat-v1.0"])
def test_goldens(shared: Path, tmp_path: Path, name: str) -> None:
    whole, part = both(shared / "configs" / name, tmp_path)
    assert [same(whole, part, text) for text in strings(shared)] == expected(shared, name)
    text, ids = long_text(shared, name)
    assert part.encode(text, add_special_tokens=False) == ids[ids[0] == part.bos_id :]
    assert backend(part)._whole is None
    assert (part.vocab_size, part.bos_id, part.eos_ids) == (
        whole.vocab_size,
        whole.bos_id,
        whole.eos_ids,
    )
    assert part.special_tokens == whole.special_tokens
    for i in range(-1, whole.vocab_size + 1, 7):
        assert part.id_to_token(i) == whole.id_to_token(i)
        assert part.id_to_piece(i) == whole.id_to_piece(i)
        assert part.token_to_id(whole.id_to_token(i) or "") == whole.token_to_id(
            whole.id_to_token(i) or ""
        )


def with_merges(content: dict[str, Any], picks: list[tuple[int, int]], start: int) -> None:
    """Join tokens of the vocabulary from `start` on, those made before too."""
    model = content["model"]
    tokens, merges = list(model["vocab"])[start:], []
    for a, b in picks:
        first, second = tokens[a % len(tokens)], tokens[b % len(tokens)]
        if [first, second] not in merges:
            merges.append([first, second])
            tokens.append(first + second)
    for token in tokens:
        model["vocab"].setdefault(token, len(model["vocab"]))
    model["merges"] = merges


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    picks=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=25),
    kind=st.sampled_from(["bytes", "whole words", "fallback", "unknown"]),
    texts=st.lists(
        st.text(st.sampled_from("aabé日x ▁<|\n") | st.characters(codec="utf-8"), max_size=12)
        | st.lists(st.sampled_from([*SPECIAL, "ab", " a", "abab"])).map("".join),
        min_size=1, max_size=4,
    ),
)  # fmt: skip
def test_any_merges(
    tmp_path_factory: pytest.TempPathFactory,
    picks: list[tuple[int, int]],
    kind: str,
    texts: list[str],
) -> None:
    content = byte_fallback_json() if kind in ("fallback", "unknown") else byte_level_json()
    with_merges(content, picks, 259 if kind in ("fallback", "unknown") else 64)
    content["model"]["byte_fallback"] = kind == "fallback"
    content["model"]["ignore_merges"] = kind == "whole words"
    content["added_tokens"].append(added("ab", 5000, special=False, normalized=True))
    folder = write(tmp_path_factory.mktemp("merges"), content)
    whole, part = both(folder, folder / "kept")
    for text in texts:
        same(whole, part, text)
    backend(part)


def test_what_is_read_of_a_vocabulary(tmp_path: Path) -> None:
    whole, part = both(write(tmp_path / "m", byte_level_json()), tmp_path)
    assert part.encode("hell") == whole.encode("hell")
    # Of nine merges "hell" can meet three; no token of "world" was read.
    assert {a + b for a, b in backend(part)._merges.values()} == {"he", "ll", "hell"}
    assert backend(part)._vocab.keys() == {"he", "ll", "hell"}
    same(whole, part, "hello world hello")
    assert len(backend(part)._merges) == len(MERGES) - 1


def test_the_whole_is_loaded_once_parts_are_as_much_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, part = both(write(tmp_path / "m", byte_level_json()), tmp_path)
    assert part.encode_marked("hello<|eos|>", "\x02") == [260 - 1, 266]
    monkeypatch.setattr(partial, "_WORK", 2000)
    assert backend(part)._whole is None
    same(whole, part, "x" * 501)
    assert backend(part)._whole is not None
    same(whole, part, "hello <|turn of|> world")


def test_where_whole_words_are_looked_up_a_control_token_is_no_word(tmp_path: Path) -> None:
    content = byte_level_json()
    content["model"]["ignore_merges"] = True
    content["added_tokens"].append(added("stop", 268))
    whole, part = both(write(tmp_path / "m", content), tmp_path)
    assert 268 not in same(whole, part, "go stop")[:2]
    assert len(same(whole, part, "stop")) == 4
    assert part.encode("stop", allow_special=True)[-1] == 268


@pytest.mark.parametrize(("model", "more"), ALMOST)
def test_what_cannot_be_had_in_parts(
    tmp_path: Path, model: dict[str, Any], more: dict[str, Any]
) -> None:
    content = byte_level_json()
    vocab = more.pop("vocab", None)
    content |= more
    content["model"] |= model | ({"vocab": vocab, "merges": ["a ##b"]} if vocab else {})
    if "dropout" in model or vocab or "end_of_word_suffix" in model:
        content |= {"post_processor": None, "added_tokens": []}
    folder = write(tmp_path / "m", content)
    _, again = both(folder, tmp_path / "kept")
    assert not isinstance(again._backend, PartialBackend)
    assert [file.stat().st_size for file in (tmp_path / "kept").iterdir()] == [0]


def test_other_models_and_short_control_tokens_are_not_had_in_parts(tmp_path: Path) -> None:
    content = byte_level_json()
    content["added_tokens"].append(added("日", 268))
    for name, one in {"words": word_piece_json(), "short": content}.items():
        loaded = Tokenizer.load(write(tmp_path / name, one))
        assert divisible(loaded._backend) is None  # type: ignore[arg-type]


def _swap(data: bytes) -> bytes:
    return data.replace(b"Sterna's tokens", b"Sterna's things")


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:100], lambda data: b"?" * len(data), lambda data: data[:5000], _swap],
)
def test_a_file_that_is_not_whole_is_made_again(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder, kept = write(tmp_path / "m", byte_level_json()), tmp_path / "kept"
    both(folder, kept)
    (path,) = kept.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert open_store(path) is None
    whole, part = both(folder, kept)
    same(whole, part, "hello world")
    assert list(kept.iterdir()) == [path]


def test_a_file_that_is_damaged_later_is_named(tmp_path: Path) -> None:
    folder, kept = write(tmp_path / "m", byte_level_json()), tmp_path / "kept"
    _, part = both(folder, kept)
    backend(part)._store._connection.close()
    with pytest.raises(TokenizerError, match=r"kept in .*\.sqlite are damaged.*remove it"):
        part.encode("hello")
    with pytest.raises(TokenizerError, match="remove it"):
        part.id_to_token(260)


def test_another_vocabulary_is_another_file(tmp_path: Path) -> None:
    content, kept = byte_level_json(), tmp_path / "kept"
    folder = write(tmp_path / "m", content)
    both(folder, kept)
    content["model"]["merges"] = MERGES[1:]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    os.utime(folder / "tokenizer.json", (1, 1))
    whole, part = both(folder, kept)
    assert same(whole, part, "hello") != [260, 261]
    assert len(list(kept.iterdir())) == 2


def test_without_a_folder_that_can_be_written_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "m", byte_level_json())
    loaded = Tokenizer.load(folder, tmp_path / "missing")
    assert loaded.encode("hello") == Tokenizer.load(folder).encode("hello")
    assert "tokens are not kept in" in caplog.text


def test_a_server_has_all_of_its_vocabulary_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path))
    assert loader._kept_tokens(EngineOptions()) == tmp_path / "tokens"
    assert loader._kept_tokens(EngineOptions(mode=Mode.SERVER)) is None
    assert loader._kept_tokens(EngineOptions(keep_packed=False)) is None
