"""The shortest way to end: which tokens bring an answer in a grammar to its end soon.

In: a matcher in some state. Out: a path of tokens after which the answer may end, or None. Greedy
with a look one step ahead, and always the same for the same state: what ends strings, objects,
arrays and thoughts is tried first, then any single character. Knows no limits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import llguidance

LONGEST = 192  # tokens of a path
_CLOSERS = ('"', "}", "]", "</think>", '"}', "0", "1", "null", "true", " ", "\n", "a")
_CONTINUED = (0x80, 0x90, 0xA0)  # one of them may follow any byte that a character begins with
_BRANCHES = 24  # looked at in each step


def closers(words: llguidance.LLTokenizer, tokens: Sequence[bytes]) -> tuple[tuple[int, ...], ...]:
    """What to try, in order: texts that end things, then tokens of one byte, printable ones first.

    Bytes that go on a character come last: they end one that is begun.
    """
    first = [tuple(words.tokenize_str(text)) for text in _CLOSERS]
    single = {token[0]: (i,) for i, token in enumerate(tokens) if len(token) == 1}
    order = (*range(32, 127), *_CONTINUED)
    return tuple(dict.fromkeys([p for p in first if p] + [single[b] for b in order if b in single]))


def way_out(
    matcher: llguidance.LLMatcher, candidates: Sequence[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """A path to where the answer may end; () where it may end already."""
    matcher = matcher.deep_copy()
    path: list[int] = []
    tried: Counter[tuple[int, ...]] = Counter()
    while not matcher.is_accepting():
        forced = tuple(matcher.compute_ff_tokens())
        step = forced or _step(matcher, candidates, tried)
        if not step or len(path) > LONGEST or not matcher.consume_tokens(list(step)):
            return None
        tried[step] += 1
        path += step
    return tuple(path)


def _step(
    matcher: llguidance.LLMatcher,
    candidates: Sequence[tuple[int, ...]],
    tried: Counter[tuple[int, ...]],
) -> tuple[int, ...]:
    """The candidate after which the answer may end or goes on by force; else the least tried."""
    possible = [c for c in candidates if matcher.validate_tokens(list(c)) == len(c)]
    possible = sorted(possible, key=lambda candidate: tried[candidate])[:_BRANCHES]
    for candidate in possible:
        ahead = matcher.deep_copy()
        if ahead.consume_tokens(list(candidate)) and ahead.is_accepting():
            return candidate
    return possible[0] if possible else ()
