"""Special tokens that users spell out, told apart from those a chat template writes.

In: messages as plain data, and the special tokens' texts. Out: the same data with a mark, one
private-use character that occurs nowhere in it, inside every spelled-out special token. A template
passes marks on with the text they are in, so in its output a special token is whole only where the
template wrote it. `Tokenizer.encode_marked` turns such a text into ids. Knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sterna.base.errors import RequestError

_PRIVATE_USE = range(0xE000, 0xF900)


class Marker:
    """Marks what users wrote. Built once for a tokenizer's special tokens."""

    def __init__(self, specials: Iterable[str]) -> None:
        breakable = tuple(sorted(text for text in set(specials) if len(text) > 1))
        self._pattern = re.compile(one_of(breakable)) if breakable else None
        self._heads = {text[:n] for text in breakable for n in range(1, len(text))}
        self._longest = max(map(len, self._heads), default=0)

    def mark(self, value: Any) -> tuple[Any, str | None]:
        """Return `value` with its strings marked, and the mark; None where nothing had to be.

        A beginning of a special token at the end of a string is marked too: what the template
        puts after it may complete it.
        """
        found = {text for text in _strings(value) if self._marked(text, "x") != text}
        if not found:
            return value, None
        mark = _unused(value)
        return _replaced(value, {text: self._marked(text, mark) for text in found}), mark

    def _marked(self, text: str, mark: str) -> str:
        if self._pattern is None:
            return text
        while self._pattern.search(text):  # again, where special tokens overlap
            text = self._pattern.sub(lambda match: match[0][0] + mark + match[0][1:], text)
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._heads:
                at = len(text) - length + 1
                return text[:at] + mark + text[at:]
        return text


def one_of(texts: tuple[str, ...]) -> str:
    """A regular expression for any of `texts`, the longest where several fit: a tree of prefixes.

    Deciding takes one pass over the characters, however many texts there are.
    """
    tails: dict[str, list[str]] = {}
    for text in texts:
        if text:
            tails.setdefault(text[0], []).append(text[1:])
    branches = [re.escape(head) + one_of(tuple(rest)) for head, rest in sorted(tails.items())]
    if not branches:
        return ""
    joined = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{joined})?" if "" in texts else joined


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)


def _replaced(value: Any, marked: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return marked.get(value, value)
    if isinstance(value, Mapping):
        return {marked.get(key, key): _replaced(item, marked) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, marked) for item in value]
    return value


def _unused(value: Any) -> str:
    used = set().union(*map(set, _strings(value)))
    for code in _PRIVATE_USE:
        if chr(code) not in used:
            return chr(code)
    raise RequestError("the messages use every private-use character of Unicode's basic plane")
