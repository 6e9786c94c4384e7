"""RWKV's World vocabulary: a text's bytes are cut into the longest tokens, from the left.

In: a folder with rwkv_vocab_v20230424.txt, whose lines are an id, the token as a literal of Python
and its length in bytes. Out: a backend with what `Tokenizer` asks of one; the `tokenizers` library
has no such model. Tokens are spelled in the alphabet of byte-level BPE. The id 0 is the end of a
document, which the file leaves out. A control token of the configuration whose text is a token
already stays that token: models were trained on the vocabulary's id, not on one behind it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.base.errors import TokenizerError
from sterna.text.decoding import ALPHABET
from sterna.text.json_file import read_optional, read_text
from sterna.text.marking import one_of
from sterna.text.special_tokens import token_text

if TYPE_CHECKING:
    import tokenizers

FILE = "rwkv_vocab_v20230424.txt"
END = "<|rwkv_tokenizer_end_of_text|>"
MAX_FILE_BYTES, MAX_TOKEN, MAX_ID = 32 << 20, 1024, 1 << 24
_LINE = re.compile(r"(\d{1,8}) (b?)('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\") (\d{1,4})")
_CHARACTERS = {byte: character for character, byte in ALPHABET.items()}


@dataclass(frozen=True, slots=True)
class Encoding:
    ids: list[int]


class GreedyBackend:
    """Ids of `tokens`, and of added tokens, which are found before anything is cut.

    Special ones among these are plain text while `encode_special_tokens` is set. `start` is the id
    that every text begins with where special tokens are wanted.
    """

    def __init__(self, tokens: Mapping[bytes, int], start: int | None = None) -> None:
        from tokenizers import decoders

        self.encode_special_tokens = False
        self.decoder = decoders.ByteLevel()
        self.start = start
        self._tokens = tokens
        self._spelled = {spelled(token): i for token, i in tokens.items()}
        self._texts = {i: text for text, i in self._spelled.items()}
        self._added: dict[int, tokenizers.AddedToken] = {}
        self._added_ids: dict[str, int] = {}
        lengths: dict[bytes, set[int]] = {}
        for token in tokens:
            lengths.setdefault(token[:2], set()).add(len(token))
        self._lengths = {begin: sorted(own, reverse=True) for begin, own in lengths.items()}

    def no_truncation(self) -> None:
        """Nothing is cut off."""

    def no_padding(self) -> None:
        """Nothing is filled up."""

    def add(self, token: tokenizers.AddedToken, token_id: int) -> None:
        self._added[token_id] = token
        self._added_ids[token.content] = token_id

    def add_tokens(self, tokens: list[tokenizers.AddedToken]) -> int:
        """Add tokens behind all others."""
        for token in tokens:
            self.add(token, max(self.get_vocab_size(False), *(i + 1 for i in self._added), 0))
        return len(tokens)

    def get_added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        return dict(self._added)

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """One more than the highest id: those between that the file leaves out count."""
        highest = max(self._texts)
        return max(highest, *self._added) + 1 if with_added_tokens and self._added else highest + 1

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        return self._spelled | (self._added_ids if with_added_tokens else {})

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the alphabet spells it, or as configurations write it."""
        for known in (self._added_ids, self._spelled):
            if token in known:
                return known[token]
        return self._tokens.get(token.encode())

    def id_to_token(self, token_id: int) -> str | None:
        added = self._added.get(token_id)
        return self._texts.get(token_id) if added is None else added.content

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        ids = [self.start] if add_special_tokens and self.start is not None else []
        found = [
            t.content
            for t in self._added.values()
            if t.content and not (t.special and self.encode_special_tokens)
        ]
        parts = re.split(f"({one_of(tuple(found))})", text) if found else [text]
        for i, part in enumerate(parts):
            ids += [self._added_ids[part]] if i % 2 else self._cut(part.encode())
        return Encoding(ids)

    def _cut(self, data: bytes) -> list[int]:
        ids, at = list[int](), 0
        tokens, lengths, none = self._tokens, self._lengths, list[int]()
        while at < len(data):
            for length in lengths.get(data[at : at + 2], none):
                token_id = tokens.get(data[at : at + length])
                if token_id is not None and at + length <= len(data):
                    break
            else:
                length, token_id = 1, tokens[data[at : at + 1]]
            ids.append(token_id)
            at += length
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        special = {i for i, t in self._added.items() if t.special and skip_special_tokens}
        texts = (self.id_to_token(i) for i in ids if i not in special)
        text: str = self.decoder.decode([t for t in texts if t is not None])
        return text


def build_greedy(folder: Path) -> GreedyBackend:
    """Build the backend; TokenizerError for a damaged file or configuration."""
    from tokenizers import AddedToken

    config = read_optional(folder / "tokenizer_config.json")
    starts = config.get("add_bos_token") is True
    backend = GreedyBackend(parse_vocabulary(read_text(folder / FILE, MAX_FILE_BYTES), folder))
    listed = read_optional(folder / "added_tokens.json")
    described: dict[str, Any] = {str(i): {"content": t, "special": True} for t, i in listed.items()}
    described = {"0": {"content": END, "special": True}} | described
    more = config.get("added_tokens_decoder") or {}
    if not isinstance(more, dict):
        raise TokenizerError(f"{folder}/tokenizer_config.json: added_tokens_decoder maps no ids")
    for key, own in (described | more).items():
        text = token_text(own, f"added token {key[:20]}")
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 9 else MAX_ID
        if backend.token_to_id(text) is not None:
            continue  # the vocabulary's own token, or the same said twice
        if token_id >= MAX_ID or backend.id_to_token(token_id) not in (None, text):
            raise TokenizerError(
                f"{folder}: the configuration gives the token {text[:80]!r} the id {key[:20]}, "
                "which is no id, or another token's: the files do not belong together, download "
                "them again"
            )
        special = isinstance(own, dict) and own.get("special") is True
        backend.add(AddedToken(text, special=special, normalized=False), token_id)
    if starts:
        text = token_text(config.get("bos_token", END), "bos_token")
        backend.start = backend.token_to_id(text)
    return backend


def parse_vocabulary(text: str, folder: Path) -> dict[bytes, int]:
    """Ids by token; TokenizerError for a line that is none, and for tokens or bytes amiss."""
    found: dict[bytes, int] = {}
    ids: set[int] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        match = _LINE.fullmatch(line) if len(line) <= 8 * MAX_TOKEN else None
        token = b"" if match is None else _literal(match[2], match[3])
        token_id = int(match[1]) if match else 0
        length = int(match[4]) if match else 0
        new = token not in found and token_id not in ids and 0 < token_id < MAX_ID
        if not 0 < len(token) <= MAX_TOKEN or len(token) != length or not new:
            raise TokenizerError(
                f"{folder / FILE}: line {number} is no new id, token and length; the file is "
                "damaged, download it again"
            )
        found[token] = token_id
        ids.add(token_id)
    if missing := [byte for byte in range(256) if bytes([byte]) not in found]:
        raise TokenizerError(
            f"{folder / FILE} has no token for the byte {missing[0]}; the file is truncated or "
            "damaged, download it again"
        )
    return found


def _literal(prefix: str, quoted: str) -> bytes:
    """The bytes of a literal of Python; none where it is damaged."""
    if not prefix and "\\" not in quoted:
        return quoted[1:-1].encode()
    try:
        value = ast.literal_eval(prefix + quoted)
        return value if isinstance(value, bytes) else value.encode()
    except (ValueError, SyntaxError):
        return b""


def spelled(token: bytes) -> str:
    """A token in the alphabet of byte-level BPE, a character a byte."""
    return "".join(_CHARACTERS[byte] for byte in token)
