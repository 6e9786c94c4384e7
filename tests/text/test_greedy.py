"""RWKV's vocabulary: the longest token first, as the authors' own program cuts, or a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import TokenizerError
from sterna.text.detokenizer import StreamDecoder
from sterna.text.greedy import END, FILE, MAX_TOKEN, GreedyBackend, parse_vocabulary
from sterna.text.tokenizer import Tokenizer

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [
    b"ab", b"abc", b"abcde", b"bcd", b" ab", b"\n\n", b"\xc3\xa9", b"\xe4\xb8", b"'\"", b"\\x",
    b"  ", b" " * 8, b"\xb8\xad\xe5",
]  # fmt: skip
CONFIG = {
    "bos_token": END,
    "eos_token": "\n\n",
    "added_tokens_decoder": {
        "0": {"content": END, "special": True},
        "300": {"content": "<|end|>", "special": True},
        "400": {"content": "\n\n", "special": True},  # as transformers' wrapper writes it
    },
}


def line(token_id: int, token: bytes) -> str:
    try:
        literal = repr(token.decode())
    except UnicodeDecodeError:
        literal = repr(token)
    return f"{token_id} {literal} {len(token)}\n"


VOCABULARY = "".join(line(i, token) for i, token in enumerate([*BYTES, *WORDS], 1))


def write(folder: Path, text: str = VOCABULARY, config: object = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write(tmp_path_factory.mktemp("world")))


def longest_first(data: bytes) -> list[int]:
    known, ids = [*BYTES, *WORDS], []
    while data:
        token = max((t for t in known if data.startswith(t)), key=len)
        ids.append(known.index(token) + 1)
        data = data[len(token) :]
    return ids


@settings(derandomize=True, max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abcde \n\"'\\xé中国🙂\x00")))
def test_the_longest_token_first(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == longest_first(text.encode())
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.id_to_piece, ids)) == text.encode()
    stream = StreamDecoder(tokenizer)
    assert "".join([*(stream.put([i]) for i in ids), stream.finish()]) == text


def test_control_tokens(tokenizer: Tokenizer) -> None:
    """Text unless asked for; what the vocabulary has already keeps its id."""
    assert tokenizer.bos_id == 0
    assert tokenizer.eos_ids[0] == 256 + 1 + WORDS.index(b"\n\n")
    assert tokenizer.special_tokens == {END: 0, "<|end|>": 300}
    assert tokenizer.vocab_size == 301
    text = f"ab<|end|>{END}"
    assert tokenizer.encode(text, allow_special=True) == [257, 300, 0]
    assert tokenizer.encode(text) == longest_first(text.encode())
    assert tokenizer.decode([257, 300, 0, 299]) == "ab"
    assert tokenizer.decode([257, 300, 0], skip_special_tokens=False) == text
    marked = tokenizer.encode_marked(f"ab<|end|>{END[:5]}@@{END[5:]}", "@@")
    assert marked == [257, 300, *longest_first(END.encode())]


def test_a_start_that_is_asked_for(tmp_path: Path) -> None:
    found = Tokenizer.load(write(tmp_path / "m", config={**CONFIG, "add_bos_token": True}))
    assert found.encode("ab") == [0, 257]
    assert found.encode(f"{END}ab", allow_special=True) == [0, 257]
    assert found.encode("ab", add_special_tokens=False) == [257]


def changed(number: int, new: str) -> str:
    lines = VOCABULARY.splitlines(keepends=True)
    lines[number] = new
    return "".join(lines)


LIES: dict[str, Callable[[], str]] = {
    "length": lambda: changed(260, "261 'abcde' 4\n"),
    "id twice": lambda: changed(260, "3 'zz' 2\n"),
    "token twice": lambda: changed(260, "261 'ab' 2\n"),
    "id 0": lambda: changed(260, "0 'zz' 2\n"),
    "huge id": lambda: changed(260, "99999999 'zz' 2\n"),
    "minus": lambda: changed(260, "-1 'zz' 2\n"),
    "no literal": lambda: changed(260, "261 [1]*9 2\n"),
    "a call": lambda: changed(260, "261 exit() 2\n"),
    "bad escape": lambda: changed(260, "261 '\\x4' 2\n"),
    "lone surrogate": lambda: changed(260, "261 '\\ud800' 3\n"),
    "empty": lambda: changed(260, "261 '' 0\n"),
    "long": lambda: changed(260, f"261 '{'z' * 9999}' 9999\n"),
    "a bit long": lambda: changed(260, f"261 '{'z' * (MAX_TOKEN + 1)}' {MAX_TOKEN + 1}\n"),
    "a byte missing": lambda: changed(65, "66 'zz' 2\n"),
    "truncated": lambda: VOCABULARY[:999],
    "nothing": lambda: "\n",
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie(lie: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="download it again") as caught:
        Tokenizer.load(write(tmp_path / "m", LIES[lie]()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "added",
    [
        {"5": {"content": "<|x|>"}},
        {"x": {"content": "<|x|>"}},
        {"300": {}},
        {"9" * 99: "<|x|>"},
        [1],
    ],
)
def test_configurations_that_lie(added: object, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.load(write(tmp_path / "m", config={"added_tokens_decoder": added}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(derandomize=True, max_examples=100, deadline=None)
@given(text=st.text(max_size=200), at=st.integers(0, len(VOCABULARY)))
def test_what_is_damaged_is_refused_or_read(text: str, at: int) -> None:
    try:
        tokens = parse_vocabulary(VOCABULARY[:at] + text + VOCABULARY[at:], Path("m"))
    except TokenizerError:
        return
    assert GreedyBackend(tokens).encode("ab").ids


def test_the_published_vocabulary_cuts_as_its_authors_do(shared: Path, tmp_path: Path) -> None:
    spec = find_spec("rwkv")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package rwkv, which holds the vocabulary")
    published = Path(spec.origin).parent / FILE
    shutil.copy(published, tmp_path)
    own = Tokenizer.load(tmp_path)
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    theirs = TRIE_TOKENIZER(str(published))
    raw = (shared / "tokenizer-goldens" / "vocab-test.inp").read_bytes().decode()
    for text in [*raw.split("\n__ggml_vocab_test__\n"), "User: 世界\n\nAssistant: Hi", " " * 999]:
        ids = own.encode(text)
        assert ids == theirs.encode(text)
        assert own.decode(ids) == text
    assert own.vocab_size == 65530
