"""Grammars that answers must follow: source in, the tokens that may come next out.

`Grammars` belongs to an engine and compiles sources, `Grammar` is one of them, `Constraint` follows
one answer. The library is llguidance, which works on the tokens' bytes: a mask costs tens of
microseconds, and is computed on a thread of its own while the device runs the step that it is for.
Where the grammar leaves one way to go on, the text's tokens are `forced`: no choice is made for
them. Sources are strangers' programs: their size and the library's effort are bounded, and whatever
goes wrong is a RequestError. What sources mean is written in grammar_source.py.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sterna.base.errors import RequestError
from sterna.engine.grammar_end import closers, way_out
from sterna.engine.sampler import Allowed
from sterna.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

MAX_SOURCE = 512 * 1024
_KEPT = 64  # compiled grammars
_MASK_THREADS = 2
_INNER = "\n"  # set before a text to encode it as the middle of a longer one


class Grammars:
    """Compiles sources for one tokenizer; keeps the latest. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_ids = sorted(i for i in end_ids if i < vocabulary)
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, source: str, what: str) -> Grammar:
        """Compile a source; RequestError, about `what`, where that cannot be done."""
        with self._lock:
            if source in self._kept:
                self._kept.move_to_end(source)
                return self._kept[source]
        if len(source) > MAX_SOURCE:
            raise RequestError(
                f"{what} makes a grammar of {len(source)} characters, "
                f"possible are up to {MAX_SOURCE}",
                what,
            )
        matcher = self._matcher(source)
        problem = matcher.get_error() or " ".join(matcher.get_grammar_warnings())
        if problem:
            raise RequestError(f"{what} cannot be enforced: {_line(problem)}", what)
        grammar = Grammar(matcher, self._vocabulary, self._threads, self._closers)
        try:
            first = grammar.start()  # some limits are met here only
            if first.finished or not first.allowed().any():
                raise RequestError("it allows nothing but an empty answer")
        except RequestError as error:
            raise RequestError(f"{what} cannot be enforced: {error}", what) from None
        with self._lock:
            self._kept[source] = grammar
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _matcher(self, source: str) -> llguidance.LLMatcher:
        import llguidance  # 7 MB that an engine without grammars does without

        limits = llguidance.LLParserLimits(verbose_errors=False)
        return llguidance.LLMatcher(self._words, source, log_level=0, limits=limits)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_MASK_THREADS, thread_name_prefix="sterna-mask")

    @cached_property
    def _words(self) -> llguidance.LLTokenizer:
        import llguidance

        words = self._tokens
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(words),
            n_vocab=len(words.tokens),
            eos_token=words.end_ids,
        )

    @cached_property
    def _tokens(self) -> _Words:
        return _Words(self._tokenizer, self._vocabulary, self._end_ids)

    @cached_property
    def _closers(self) -> tuple[tuple[int, ...], ...]:
        return closers(self._words, self._tokens.tokens[: self._vocabulary])


class _Words:
    """A tokenizer as the library wants it. Without an end token one is made up, past the last."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, end_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.id_to_piece(i) for i in range(vocabulary)]
        special = [i for i in tokenizer.special_tokens.values() if i < vocabulary]
        if not end_ids:
            self.tokens.append(b"<end>")
            end_ids = [vocabulary]
        self.end_ids = list(end_ids)
        self.eos_token_id = self.end_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted({*special, *self.end_ids})

    def __call__(self, text: str | bytes) -> list[int]:
        """Ids of a text in the middle of an answer; [] where they would not spell it exactly."""
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        before = self._encode(_INNER)
        ids = self._encode(_INNER + text)
        if ids[: len(before)] == before and self._spell(ids[len(before) :]) == text.encode():
            return ids[len(before) :]
        ids = self._encode(text)
        return ids if self._spell(ids) == text.encode() else []

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _spell(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.tokens[i] if i < len(self.tokens) else b"" for i in ids)


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled source."""

    _matcher: llguidance.LLMatcher
    vocabulary: int
    threads: ThreadPoolExecutor
    closers: tuple[tuple[int, ...], ...]

    def start(self) -> Constraint:
        """Begin an answer."""
        return Constraint(self._matcher.deep_copy(), self)


class Constraint:
    """How far one answer has come in its grammar. Used by one thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher, grammar: Grammar) -> None:
        self._matcher = matcher
        self._grammar = grammar
        self._ending = False  # what is forced is the rest
        self._mask: Future[Allowed] | None = None
        self.forced: deque[int] = deque()  # the only tokens that may come next, in order
        self._look_ahead()

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end."""
        return not self.forced and (self._ending or self._matcher.is_stopped())

    def prepare(self) -> None:
        """Begin to compute what may come next, on another thread."""
        if self._mask is None and not self.forced and not self.finished:
            self._mask = self._grammar.threads.submit(self._compute)

    def allowed(self) -> Allowed:
        """Which tokens may come next; the end is one of them where the answer may end."""
        if self.forced:
            only = np.zeros(self._grammar.vocabulary, np.bool_)
            only[self.forced[0]] = True
            return only
        self.prepare()
        assert self._mask is not None, "asked what may follow a finished answer"
        return self._mask.result()

    def way_out(self) -> tuple[int, ...] | None:
        """Tokens after which the answer may end; None if no short way is found."""
        ahead = way_out(self._matcher, self._grammar.closers)
        return None if ahead is None else (*self.forced, *ahead)

    def end(self, path: Sequence[int]) -> None:
        """Let nothing follow but `path`, which `way_out` has just found, and the end."""
        if self._mask is not None:
            self._mask.result()
            self._mask = None
        self.forced = deque(path)
        self._ending = True

    def advance(self, token: int) -> None:
        """Go on by one token, which must be an allowed one and not the end."""
        if self._mask is not None:
            self._mask.result()
            self._mask = None
        if self.forced:
            expected = self.forced.popleft()
            assert token == expected, f"token {token} where {expected} was forced"
        elif not self._matcher.consume_token(token):
            self._fail()
        if not self.forced and not self._ending:
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Note the tokens that are forced now; the matcher runs ahead of the answer by them."""
        if self._matcher.is_stopped():
            return
        forced = self._matcher.compute_ff_tokens()
        if forced and not self._matcher.consume_tokens(forced):
            self._fail()
        if self._matcher.is_error():
            self._fail()
        self.forced.extend(forced)

    def _compute(self) -> Allowed:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._grammar.vocabulary].astype(
            np.bool_
        )
        if self._matcher.is_error() or not allowed.any():
            self._fail()
        return allowed

    def _fail(self) -> None:
        reason = _line(self._matcher.get_error()) or "no token fits"
        raise RequestError(f"the answer cannot be kept to its grammar: {reason}")


def _line(text: str) -> str:
    """A message of the library in one line."""
    return " ".join(text.split())[:300]
