"""What each decoder step of a tokenizer does to tokens, written so that it can run as a stream.

In: the `decoder` object of a tokenizer.json; out: stages that turn tokens into text piece by
piece. The concatenated output of a chain equals what the `tokenizers` library returns for the
whole list, replacement characters included; the meaning of each step follows that library's
decoders/*.rs. Does not know ids.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from sterna.base.errors import TokenizerError

Step = Mapping[str, Any]

# `+` is a sign that the library's number parser accepts.
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
KNOWN = ("ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece")
# What WordPiece's cleanup puts where, in this order.
CLEANUP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map from printable characters to bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(rest)}


ALPHABET = _byte_alphabet()


def flatten(component: Step | None) -> tuple[Step, ...]:
    """The steps of a decoder or normalizer in order, `Sequence` opened up."""
    if component is None:
        return ()
    if component.get("type") != "Sequence":
        return (component,)
    children = component.get("decoders") or component.get("normalizers") or ()
    return tuple(step for child in children for step in flatten(child))


def check(steps: Sequence[Step]) -> None:
    """Raise TokenizerError for a step that has no streaming form here."""
    fused = False
    for step in steps:
        kind = step["type"]
        supported = kind in KNOWN
        if kind == "Replace":
            pattern = step["pattern"].get("String")
            supported = bool(pattern) and (not fused or len(pattern) == 1)
        elif kind == "Strip":
            supported = not step["stop"]  # the library itself fails on empty tokens there
        elif kind in ("Metaspace", "ByteFallback", "ByteLevel", "WordPiece"):
            supported = not fused
        if not supported:
            raise TokenizerError(
                f"the tokenizer's decoder has a step {dict(step)} that Sterna does not support "
                f"in this place; it knows {', '.join(KNOWN)}"
            )
        fused = fused or kind in ("Fuse", "ByteLevel")


@lru_cache(maxsize=1 << 16)
def token_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; one with a foreign character stands for itself."""
    try:
        return bytes([ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def piece(steps: Sequence[Step], token: str) -> bytes:
    """Bytes of one token by itself, whatever stands before it."""
    for step in steps:
        if step["type"] == "ByteLevel":
            return token_bytes(token)
        if step["type"] == "Replace":
            token = token.replace(step["pattern"]["String"], step["content"])
        elif step["type"] == "Metaspace":
            token = token.replace(step["replacement"], " ")
        elif step["type"] == "WordPiece":
            token = word_piece(step, token)
        elif step["type"] == "ByteFallback" and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
    return token.encode()


def word_piece(step: Step, token: str, first: bool = False) -> str:
    """The text of a token: what goes on with a word has a prefix, before others is a space."""
    prefix = step["prefix"]
    if not first:
        token = token[len(prefix) :] if token.startswith(prefix) else f" {token}"
    for old, new in CLEANUP if step["cleanup"] else ():
        token = token.replace(old, new)
    return token


class Stage(Protocol):
    """Takes tokens, gives tokens; `finish` gives what it held back."""

    def put(self, tokens: list[str]) -> list[str]: ...

    def finish(self) -> list[str]: ...


class ByteLevel:
    """Bytes of all tokens as one string; incomplete characters are held back."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, tokens: list[str]) -> list[str]:
        return [self._utf8.decode(b"".join(map(token_bytes, tokens)))]

    def finish(self) -> list[str]:
        return [self._utf8.decode(b"", final=True)]


class ByteFallback:
    """Runs of `<0xNN>` become text where the whole run is valid UTF-8, else one U+FFFD a byte.

    A run is held until it ends, because its last byte may still make all of it invalid.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def put(self, tokens: list[str]) -> list[str]:
        out: list[str] = []
        for token in tokens:
            if match := BYTE_TOKEN.fullmatch(token):
                self._run.append(int(match[1], 16))
            else:
                out += [*self.finish(), token]
        return out

    def finish(self) -> list[str]:
        run, self._run = self._run, bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\N{REPLACEMENT CHARACTER}"] * len(run)


class Replace:
    """One string for another, within each token."""

    def __init__(self, pattern: str, content: str) -> None:
        self._pattern, self._content = pattern, content

    def put(self, tokens: list[str]) -> list[str]:
        return [token.replace(self._pattern, self._content) for token in tokens]

    def finish(self) -> list[str]:
        return []


class Metaspace:
    """`▁` is a space, except in the first token where the encoder had put it there."""

    def __init__(self, replacement: str, drop_first: bool) -> None:
        self._replacement, self._first = replacement, drop_first

    def put(self, tokens: list[str]) -> list[str]:
        out = []
        for token in tokens:
            out.append(token.replace(self._replacement, "" if self._first else " "))
            self._first = False
        return out

    def finish(self) -> list[str]:
        return []


class WordPiece:
    """BERT's: a space before each token but the first and those that go on with a word."""

    def __init__(self, step: Step) -> None:
        self._step, self._first = step, True

    def put(self, tokens: list[str]) -> list[str]:
        out = []
        for token in tokens:
            out.append(word_piece(self._step, token, self._first))
            self._first = False
        return out

    def finish(self) -> list[str]:
        return []


class StripStart:
    """Up to `count` leading characters `content`: of the fused text, or of each token."""

    def __init__(self, content: str, count: int, fused: bool) -> None:
        self._content, self._count, self._fused = content, count, fused

    def put(self, tokens: list[str]) -> list[str]:
        return [self._strip(token) for token in tokens]

    def _strip(self, token: str) -> str:
        start = 0
        while start < min(self._count, len(token)) and token[start] == self._content:
            start += 1
        if self._fused and token:
            self._count = self._count - start if start == len(token) else 0
        return token[start:]

    def finish(self) -> list[str]:
        return []


class Spaced:
    """A tokenizer without a decoder: tokens joined by a space."""

    def __init__(self) -> None:
        self._first = True

    def put(self, tokens: list[str]) -> list[str]:
        out = [token if self._first and not i else f" {token}" for i, token in enumerate(tokens)]
        self._first = self._first and not tokens
        return out

    def finish(self) -> list[str]:
        return []


def stages(steps: Sequence[Step]) -> list[Stage]:
    """Fresh stages for a chain of steps that `check` accepted."""
    chain: list[Stage] = [] if steps else [Spaced()]
    fused = False
    for step in steps:
        match step["type"]:
            case "ByteLevel":
                chain.append(ByteLevel())
            case "ByteFallback":
                chain.append(ByteFallback())
            case "Replace":
                chain.append(Replace(step["pattern"]["String"], step["content"]))
            case "Metaspace":
                chain.append(Metaspace(step["replacement"], step["prepend_scheme"] != "never"))
            case "WordPiece":
                chain.append(WordPiece(step))
            case "Strip":
                chain.append(StripStart(step["content"], step["start"], fused))
        fused = fused or step["type"] in ("Fuse", "ByteLevel")
    return chain
