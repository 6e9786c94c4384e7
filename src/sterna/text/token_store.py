"""The tokens and merges of a large BPE vocabulary in a file that is opened and not read.

In: the content of a tokenizer.json as the `tokenizers` library writes it. Out: an SQLite file that
answers which of some texts are tokens, and which merges make some tokens. A file appears whole or
not at all. Does not know how a text is cut into tokens (partial.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sterna.base.errors import TokenizerError

_FORMAT = "Sterna's tokens 1"
_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value NOT NULL);
CREATE TABLE token (text TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE spelling (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE merge (result INTEGER, rank INTEGER, first INTEGER, second INTEGER,
                    PRIMARY KEY (result, rank)) WITHOUT ROWID;
"""
_IDS = "SELECT t.text, t.id FROM json_each(?) JOIN token t ON t.text = json_each.value"
_MERGES = """
SELECT m.rank, a.text, b.text FROM json_each(?) JOIN merge m ON m.result = json_each.value
JOIN spelling a ON a.id = m.first JOIN spelling b ON b.id = m.second
"""
_MANY = 4096  # who looked up so many ids one by one will look up all

Merge = tuple[str, str]


class TokenStore:
    """An open file. `rest` is the tokenizer.json without what the file holds, `size` the number
    of tokens, `longest` the characters of the longest. Safe to use from several threads.

    TokenizerError from every method where the file was damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        self._looked_up = 0
        self._spelled: dict[int, str] | None = None
        about = dict(self._rows("SELECT name, value FROM about"))
        if about.get("format") != _FORMAT:
            raise self._damaged("it is none of Sterna's")
        self.rest: dict[str, Any] = msgspec.json.decode(about["rest"])
        self.size, self.longest = int(about["size"]), int(about["longest"])

    def ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Those texts that are tokens, with their ids."""
        return dict(self._rows(_IDS, _json(texts)))

    def merges(self, ids: Iterable[int]) -> dict[int, Merge]:
        """What makes these tokens out of two others: pairs by their rank."""
        return {rank: (a, b) for rank, a, b in self._rows(_MERGES, _json(ids))}

    def id_of(self, text: str) -> int | None:
        """The id of a token, or None."""
        return next((i for (i,) in self._rows("SELECT id FROM token WHERE text = ?", text)), None)

    def text_of(self, token_id: int) -> str | None:
        """How a token is spelled, or None."""
        if self._spelled is not None:
            return self._spelled.get(token_id)
        self._looked_up += 1
        if self._looked_up > _MANY:
            self._spelled = dict(self._rows("SELECT id, text FROM spelling"))
        found = self._rows("SELECT text FROM spelling WHERE id = ?", token_id)
        return next((text for (text,) in found), None)

    def _rows(self, query: str, *values: str | int) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> TokenizerError:
        return TokenizerError(f"the tokens kept in {self._path} are damaged ({why}): remove it")


def open_store(path: Path) -> TokenStore | None:
    """The file at `path`, or None where there is none, or none that is whole."""
    try:
        return TokenStore(path)
    except (TokenizerError, sqlite3.Error, msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None


def write_store(path: Path, rest: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Write the tokens and merges of a BPE `model`; OSError or sqlite3.Error where that fails."""
    vocab: dict[str, int] = model["vocab"]
    about = {
        "format": _FORMAT,
        "rest": msgspec.json.encode(rest).decode(),
        "size": len(vocab),
        "longest": max(map(len, vocab), default=0),
    }
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = OFF")  # nobody sees the file before its end
            connection.execute("PRAGMA synchronous = OFF")
            connection.executescript(_SCHEMA)
            connection.execute("BEGIN")
            for table, rows in (
                ("about VALUES (?, ?)", about.items()),
                ("token VALUES (?, ?)", sorted(vocab.items())),
                ("spelling VALUES (?, ?)", sorted((i, text) for text, i in vocab.items())),
                ("merge VALUES (?, ?, ?, ?)", sorted(_merges(vocab, model["merges"]))),
            ):
                connection.executemany(f"INSERT INTO {table}", rows)
            connection.execute("COMMIT")
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _merges(vocab: Mapping[str, int], merges: Iterable[Merge]) -> Iterator[tuple[int, ...]]:
    """(result, rank, first, second) of each."""
    for rank, (first, second) in enumerate(merges):
        yield vocab[first + second], rank, vocab[first], vocab[second]


def _json(values: Iterable[str] | Iterable[int]) -> str:
    return msgspec.json.encode(list(values)).decode()
