"""The shortest way to end: which tokens bring an answer in a grammar to its end soon.

In: a matcher in some state. Out: a path of tokens after which the answer may end, or None. Greedy,
and always the same for the same state: what ends strings, objects, arrays and thoughts is tried
first, then any single character. Where that goes round in circles, what was tried least comes
first. Knows no limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import llguidance

LONGEST = 192  # tokens of a path
_CLOSERS = ('"', "}", "]", ",", "</think>", "0", "1", "null", "true", " ", "\n", "a")
_CONTINUED = (0x80, 0x90, 0xA0)  # one of them may follow any byte that a character begins with
_BRANCHES = 24  # looked at in each step
_CHOICES = 48  # before it counts as a circle

Candidates = Sequence[tuple[int, ...]]


def closers(words: llguidance.LLTokenizer, tokens: Sequence[bytes]) -> tuple[tuple[int, ...], ...]:
    """What to try, in order: texts that end things, then tokens of one byte, printable ones first.

    Bytes that go on a character come last: they end one that is begun.
    """
    first = [tuple(words.tokenize_str(text)) for text in _CLOSERS]
    single = {token[0]: (i,) for i, token in enumerate(tokens) if len(token) == 1}
    order = (*range(32, 127), *_CONTINUED)
    return tuple(dict.fromkeys([p for p in first if p] + [single[b] for b in order if b in single]))


def way_out(matcher: llguidance.LLMatcher, candidates: Candidates) -> tuple[int, ...] | None:
    """A path to where the answer may end; () where it may end already."""
    path = _walk(matcher.deep_copy(), candidates, None)
    return path if path is not None else _walk(matcher.deep_copy(), candidates, Counter())


def _walk(
    matcher: llguidance.LLMatcher,
    candidates: Candidates,
    tried: Counter[tuple[int, ...]] | None,
) -> tuple[int, ...] | None:
    path: list[int] = []
    choices = 0
    while not matcher.is_accepting():
        step = tuple(matcher.compute_ff_tokens())
        if not step:
            step, choices = _choice(matcher, candidates, tried), choices + 1
        circles = tried is None and choices > _CHOICES
        if not step or circles or len(path) > LONGEST or not matcher.consume_tokens(list(step)):
            return None
        path += step
    return tuple(path)


def _choice(
    matcher: llguidance.LLMatcher,
    candidates: Candidates,
    tried: Counter[tuple[int, ...]] | None,
) -> tuple[int, ...]:
    """The candidate after which the answer may end; else the first, or the least tried."""
    possible = [c for c in candidates if matcher.validate_tokens(list(c)) == len(c)]
    if tried is not None:
        possible.sort(key=lambda candidate: tried[candidate])
    for candidate in possible[:_BRANCHES]:
        ahead = matcher.deep_copy()
        if ahead.consume_tokens(list(candidate)) and ahead.is_accepting():
            return candidate
    if tried is not None and possible:
        tried[possible[0]] += 1
    return possible[0] if possible else ()
