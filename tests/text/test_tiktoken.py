"""tiktoken's ranks alone give the ids of the model's own tokenizer.json, or a sentence."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import TokenizerError
from sterna.text.tiktoken import MAX_TOKEN, merges, parse_ranks
from sterna.text.tokenizer import Tokenizer

LLAMA3 = "configs/Meta-Llama-3-8B-Instruct"
BYTES = [bytes([byte]) for byte in range(256)]
CONTROL = {"added_tokens_decoder": {"260": {"content": "<|end|>", "special": True}}}


def lines(tokens: list[bytes]) -> bytes:
    return b"".join(b"%s %d\n" % (base64.b64encode(t), i) for i, t in enumerate(tokens))


def write(folder: Path, data: bytes, model_type: str = "llama", config: object = CONTROL) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_ranks_alone_equal_tokenizer_json(shared: Path, tmp_path: Path) -> None:
    """Every golden, with control tokens and without."""
    whole = Tokenizer.load(shared / LLAMA3)
    for name in ("tokenizer.model", "tokenizer_config.json", "config.json"):
        shutil.copy(shared / LLAMA3 / name, tmp_path)
    ranks = Tokenizer.load(tmp_path)
    raw = (shared / "tokenizer-goldens" / "vocab-test.inp").read_bytes().decode()
    golden = json.loads((shared / "tokenizer-goldens" / "llama_3.2_encoded.json").read_text())
    texts = [*raw.split("\n__ggml_vocab_test__\n"), golden["text"], "<|eot_id|>a <|begin_of_text|>"]
    for text in texts:
        for special in (False, True):
            found = ranks.encode(text, add_special_tokens=False, allow_special=special)
            assert found == whole.encode(text, add_special_tokens=False, allow_special=special)
            assert ranks.decode(found, skip_special_tokens=False) == text
    assert ranks.vocab_size == whole.vocab_size
    assert ranks.special_tokens == whole.special_tokens
    assert (ranks.bos_id, ranks.eos_ids) == (whole.bos_id, whole.eos_ids)


def test_merges_follow_from_ranks(tmp_path: Path) -> None:
    tokens = [*BYTES, b"ab", b"bc", b"abc", b"\xc3\xa9"]
    folder = write(tmp_path / "m", lines(tokens))
    tokenizer = Tokenizer.load(folder)
    assert merges(parse_ranks(lines(tokens), folder))[2:4] == [(b"a", b"bc"), (b"ab", b"c")]
    assert tokenizer.encode("abc") == [258]
    assert tokenizer.encode("abcab é") == [258, 256, 32, 259]  # "ab" has the lower rank
    assert tokenizer.encode("<|end|>", allow_special=True) == [260]
    assert tokenizer.decode([258, 259]) == "abcé"


def test_a_converted_folder_says_its_model_type_elsewhere(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", lines([*BYTES, *(b"a" * i for i in range(2, 6))]))
    (folder / "config.json").rename(folder / "mlc-chat-config.json")
    assert Tokenizer.load(folder).encode("aaaa") == [258]


LIES: dict[str, tuple[bytes, str]] = {
    "a rank too many": (lines(BYTES) + b"YWI= 257\n", "line 257"),
    "a rank twice": (lines(BYTES) + b"YWI= 3\n", "line 257"),
    "no rank": (lines(BYTES) + b"YWI=\n", "line 257"),
    "a rank below zero": (lines(BYTES) + b"YWI= -1\n", "line 257"),
    "a rank without end": (lines(BYTES) + b"YWI= " + b"9" * 5000, "line 257"),
    "a token twice": (lines([*BYTES, b"a"]), "line 257"),
    "no base64": (lines(BYTES) + b"@@@@ 256\n", "line 257"),
    "an empty token": (lines(BYTES) + b" 256\n", "line 257"),
    "a token without end": (lines([*BYTES, b"a" * (MAX_TOKEN + 1)]), "line 257"),
    "a byte is missing": (lines(BYTES[:255]), "byte 255"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path: Path, lie: str) -> None:
    data, words = LIES[lie]
    with pytest.raises(TokenizerError, match=words) as caught:
        Tokenizer.load(write(tmp_path / "m", data))
    assert "\n" not in str(caught.value)


def test_what_ranks_do_not_say(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"'qwen'.*tokenizer\.json"):
        Tokenizer.load(write(tmp_path / "m", lines(BYTES), "qwen"))
    with pytest.raises(TokenizerError, match="control tokens"):
        Tokenizer.load(write(tmp_path / "n", lines(BYTES), config={}))


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data())
def test_damaged_ranks_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(lines([*BYTES, b"ab", b"abc", b"bc", b"the"]))
    end = data.draw(st.integers(1, len(raw)))
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    folder = write(tmp_path_factory.getbasetemp() / "ranks", bytes(raw[:end]))
    with contextlib.suppress(TokenizerError):
        Tokenizer.load(folder).encode("the abc")
