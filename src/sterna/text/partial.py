"""A BPE tokenizer of which only what a text needs is ever in memory.

In: a `TokenStore`. Out: a backend with what `Tokenizer` asks of one. A library that reads 128
thousand tokens and their merges takes most of a second and 45 MB, and a prompt touches hundreds.

The `tokenizers` library does all the work as before, with a smaller model. BPE joins neighbours
inside a word, so every token that it can come across is a run of the word's first symbols. The
words are seen by a tokenizer of single symbols; those of their runs that are tokens, and the
merges that make them, are the model. Joins, their order and ids are then those of the whole.

The whole is loaded after all once the parts took as much work as that would have taken.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sterna.text.decoding import ALPHABET
from sterna.text.greedy import Encoding
from sterna.text.token_store import Merge, TokenStore, write_store

if TYPE_CHECKING:
    import tokenizers

FLAGS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_LOG = logging.getLogger("sterna")
_WORK = 200_000  # looked up or built in: about what reading 128 thousand tokens takes
_BUILT = 4  # times as long as looking up


class PartialBackend:
    """The tokens of `store`, and of the whole library, made by `load`, if ever needed."""

    def __init__(self, store: TokenStore, load: Callable[[], tokenizers.Tokenizer]) -> None:
        self.encode_special_tokens = False
        self._store, self._load = store, load
        self._rest = store.rest
        self._base: dict[str, int] = self._rest["model"]["vocab"]
        self._added = {t["content"]: t["id"] for t in self._rest["added_tokens"]}
        self._own: list[tokenizers.AddedToken] = []  # added since, with ids behind all others
        self._vocab: dict[str, int] = {}
        self._merges: dict[int, Merge] = {}
        self._seen: set[tuple[str, ...]] = set()  # words
        self._work = 0
        self._whole: tokenizers.Tokenizer | None = None
        self._renamed: dict[int, int] = {}
        self._part: tokenizers.Tokenizer | None = None
        self._symbols = self._built({"ignore_merges": False})
        self.decoder, self.normalizer = self._symbols.decoder, self._symbols.normalizer

    def no_truncation(self) -> None:
        """Nothing is cut off."""

    def no_padding(self) -> None:
        """Nothing is filled up."""

    def get_added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        return self._symbols.get_added_tokens_decoder()

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        outside = (text for text in self._added if self._store.id_of(text) is None)
        return self._store.size + (sum(1 for _ in outside) if with_added_tokens else 0)

    def add_tokens(self, tokens: list[tokenizers.AddedToken]) -> int:
        """Add tokens that no text can hold by chance, behind all others."""
        behind = max(self._store.size - 1, *self._base.values(), *self._added.values()) + 1
        self._added |= {token.content: behind + i for i, token in enumerate(tokens)}
        self._own += tokens
        described = [{f: getattr(t, f) for f in FLAGS} | {"id": self._added[t.content]}
                     for t in tokens]  # fmt: skip
        self._rest = self._rest | {"added_tokens": [*self._rest["added_tokens"], *described]}
        self._base = self._base | {t.content: self._added[t.content] for t in tokens}
        self._symbols, self._part = self._built({"ignore_merges": False}), None
        if self._whole is not None:
            self._rename(self._whole, tokens)
        return len(tokens)

    def token_to_id(self, token: str) -> int | None:
        own = self._symbols.token_to_id(token)
        return self._store.id_of(token) if own is None else own

    def id_to_token(self, token_id: int) -> str | None:
        own = self._symbols.id_to_token(token_id)  # added ones as they are normalized
        return self._store.text_of(token_id) if own is None else own

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        backend = self._whole
        if backend is None:
            backend = self._enough_for(text) or self._loaded()
        backend.encode_special_tokens = self.encode_special_tokens
        ids = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return Encoding([self._renamed.get(i, i) for i in ids] if self._renamed else ids)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        special = {i for i, t in self.get_added_tokens_decoder().items() if t.special}
        hidden = special if skip_special_tokens else set()
        found = (self.id_to_token(i) for i in ids if i not in hidden)
        tokens = [token for token in found if token is not None]
        text: str = " ".join(tokens) if self.decoder is None else self.decoder.decode(tokens)
        return text

    def _enough_for(self, text: str) -> tokenizers.Tokenizer | None:
        """A tokenizer with all that `text` needs; None where the whole one is the better."""
        if len(text) * _BUILT > _WORK:
            return None
        self._symbols.encode_special_tokens = self.encode_special_tokens
        words = _words(self._symbols.encode(text, add_special_tokens=False)) - self._seen
        if self._rest["model"]["ignore_merges"] and any(_spells(w, self._added) for w in words):
            return None  # whole words are looked up, and here control tokens are among the tokens
        longest = self._store.longest
        self._work += sum(len(word) * min(len(word), longest) for word in words)
        if self._work > _WORK:
            return None
        found = self._store.ids({run for word in words for run in _runs(word, longest)})
        self._seen |= words
        new = {run: i for run, i in found.items() if run not in self._vocab}
        if new or self._part is None:
            self._vocab |= new
            self._merges |= self._store.merges(new.values())
            self._work += _BUILT * (len(self._vocab) + len(self._merges))
            self._part = self._built({})
        return self._part

    def _built(self, changed: Mapping[str, Any]) -> tokenizers.Tokenizer:
        from tokenizers import Tokenizer

        merges = [self._merges[rank] for rank in sorted(self._merges)]
        vocab = self._base | self._vocab
        if changed:
            vocab, merges = self._base, []
        model = {**self._rest["model"], **changed, "vocab": vocab, "merges": merges}
        return Tokenizer.from_str(msgspec.json.encode({**self._rest, "model": model}).decode())

    def _loaded(self) -> tokenizers.Tokenizer:
        self._whole = self._load()
        self._whole.no_truncation()
        self._whole.no_padding()
        self._rename(self._whole, self._own)
        self._part, self._seen, self._vocab, self._merges = None, set(), {}, {}
        return self._whole

    def _rename(self, whole: tokenizers.Tokenizer, tokens: list[tokenizers.AddedToken]) -> None:
        """Give tokens that were added here to the whole library, whatever ids it has for them."""
        whole.add_tokens(tokens)
        for token in tokens:
            theirs, ours = whole.token_to_id(token.content), self._added[token.content]
            if theirs is not None and theirs != ours:
                self._renamed[theirs] = ours


def keep(backend: tokenizers.Tokenizer, path: Path) -> None:
    """Write a tokenizer's store; an empty file stands for one that cannot be had in parts."""
    try:
        content = divisible(backend)
        if content is None:
            path.touch()
        else:
            write_store(path, _rest(content), content["model"])
    except (OSError, sqlite3.Error) as error:
        _LOG.warning("tokens are not kept in %s: %s", path, error)


def divisible(backend: tokenizers.Tokenizer) -> dict[str, Any] | None:
    """The tokenizer.json of a tokenizer that may be used in parts, else None.

    It is a BPE without chance and without marks inside of words, no two tokens share an id, and
    no control token is a single character. Where it looks up whole words, these are of bytes.
    """
    if type(backend.model).__name__ != "BPE":
        return None
    content: dict[str, Any] = msgspec.json.decode(backend.to_str())
    model, vocab = content["model"], content["model"]["vocab"]
    ids = set(vocab.values())
    outside = [token for token in content["added_tokens"] if token["content"] not in vocab]
    plain = model["dropout"] is None and not (
        model["continuing_subword_prefix"] or model["end_of_word_suffix"]
    )
    told_apart = len(ids) == len(vocab) and not any("\0" in text for text in vocab)
    fits = plain and told_apart and all(
        len(t["content"]) > 1 and "\0" not in t["content"] and t["id"] not in ids for t in outside
    )  # fmt: skip
    words = not model["ignore_merges"] or _of_bytes(content["pre_tokenizer"], vocab)
    return content if fits and words else None


def _of_bytes(step: Mapping[str, Any] | None, vocab: Mapping[str, int]) -> bool:
    """Whether words are made of the bytes' alphabet alone, all of which is in the vocabulary."""
    while step is not None and step["type"] == "Sequence":
        step = step["pretokenizers"][-1] if step["pretokenizers"] else None
    return step is not None and step["type"] == "ByteLevel" and ALPHABET.keys() <= vocab.keys()


def _rest(content: Mapping[str, Any]) -> dict[str, Any]:
    """All but tokens and merges; of the tokens those that no text can do without."""
    model, added = content["model"], content["added_tokens"]
    always = {*(t["content"] for t in added), model["unk_token"]}
    always |= {f"<0x{byte:02X}>" for byte in range(256)} if model["byte_fallback"] else set()
    base = {t: i for t, i in model["vocab"].items() if len(t) == 1 or t in always}
    base |= {t["content"]: t["id"] for t in added}
    model = {**model, "vocab": base, "merges": []}
    return {**content, "truncation": None, "padding": None, "model": model}


def _words(encoding: tokenizers.Encoding) -> set[tuple[str, ...]]:
    """The symbols of each word that has more than one."""
    words: dict[int | None, list[str]] = {}
    for token, word in zip(encoding.tokens, encoding.word_ids, strict=True):
        words.setdefault(word, []).append(token)
    return {tuple(symbols) for symbols in words.values() if len(symbols) > 1}


def _runs(word: tuple[str, ...], longest: int) -> Iterable[str]:
    """All that neighbours in a word can become."""
    for first in range(len(word)):
        run = word[first]
        for symbol in word[first + 1 : first + longest]:
            run += symbol
            yield run


def _spells(word: tuple[str, ...], added: Mapping[str, int]) -> bool:
    return "".join(word) in added
