"""The sampler's orders: requests' options in, what the device's sampler takes out, and its tokens.

A token depends on nothing but its own row, its own history, and (seed, answer, position): not on
its neighbours in the batch, nor on having been preempted. Order: bias, penalties, what is
allowed, temperature, top-k, top-p, min-p, draw; the device does it, see runtime.sampling for the
rules. Log probabilities are the model's own, before any of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import DeviceError
from sterna.engine.options import SamplingOptions
from sterna.runtime.sampling import NONE, SHARE_BITS, UNIT_BITS, SampleInput, freeze

Ids = NDArray[np.intp]
Allowed = NDArray[np.bool_]  # [vocab_size]: what a grammar lets come next
Edits = tuple[NDArray[np.int32], NDArray[np.float32]]  # ids [e] and numbers [e, 4]

VERSION = 3  # raised when the same logits, options and seed would give other tokens

_MASK = 0xFFFFFFFF
_STEEPEST = 1e30  # the most that logits are divided by a temperature for


@dataclass(frozen=True, slots=True)
class History:
    """What came before the token: prompt and answer, and the key of its random draw.

    `tokens` is the sequence's own growing list, not a copy: valid until the next token.
    """

    tokens: Sequence[int]
    prompt_length: int
    seed: int
    stream: int = 0  # which of a request's n answers

    @property
    def position(self) -> int:
        return len(self.tokens)

    @property
    def output(self) -> Sequence[int]:
        return self.tokens[self.prompt_length :]


class Sample(NamedTuple):
    """A token; log probabilities when asked for, `top` likeliest first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Orders:
    """Options as the device takes them, worked out once a request.

    `edited`: some logits are changed before the choice.
    """

    options: SamplingOptions
    inverse_temperature: float
    limits: tuple[int, int, int]
    edited: bool


def orders(options: SamplingOptions) -> Orders:
    penalized = options.presence_penalty != 0 or options.frequency_penalty != 0
    edited = bool(options.logit_bias) or penalized or options.repetition_penalty != 1
    return Orders(options, _inverse(options), _limits(options), edited)


class Wanted(NamedTuple):
    """A token to be chosen from a row of the last step's logits: one of `allowed`, not `banned`."""

    row: int
    orders: Orders
    history: History
    banned: Sequence[int] = ()
    allowed: Allowed | None = None


class SampleInputs:
    """What the device takes at one step after another, most of which differ in their draws alone.

    While rows and orders stay as they are, and nothing changes a logit, an input is given again
    with other keys: it is valid until the next.
    """

    def __init__(self, vocabulary: int, vocab_size: int) -> None:
        self._sizes = vocabulary, vocab_size
        self._last: SampleInput | None = None
        self._of: list[tuple[int, Orders]] = []

    def of(self, wanted: Sequence[Wanted]) -> SampleInput:
        """See sample_input."""
        plain = not any(w.orders.edited or w.banned or w.allowed is not None for w in wanted)
        last = self._last
        if plain and last is not None and self._comes_again(wanted):
            _fill_keys(last.keys, wanted)
            return last
        made = sample_input(wanted, *self._sizes)
        if plain:
            freeze(made)
            self._last, self._of = made, [(w.row, w.orders) for w in wanted]
        return made

    def _comes_again(self, wanted: Sequence[Wanted]) -> bool:
        return len(wanted) == len(self._of) and all(
            w.row == row and w.orders is orders for w, (row, orders) in zip(wanted, self._of)
        )


def sample_input(wanted: Sequence[Wanted], vocabulary: int, vocab_size: int) -> SampleInput:
    """What the device takes, row by row. `vocabulary` of the `vocab_size` ids exist."""
    count = len(wanted)
    masked = np.zeros(count, np.int32)
    allowed = np.zeros((count, -(-vocab_size // 32)), np.uint32)
    for i, w in enumerate(wanted):
        if w.allowed is not None:
            masked[i] = 1
            bits = np.packbits(w.allowed, bitorder="little")
            allowed[i].view(np.uint8)[: len(bits)] = bits
    keys = np.empty((count, 5), np.uint32)
    _fill_keys(keys, wanted)
    orders = [w.orders for w in wanted]
    indptr, ids, edits = _all_edits(wanted, vocabulary)
    return SampleInput(
        vocabulary=vocabulary,
        rows=np.array([w.row for w in wanted], np.int32),
        inverse_temperature=np.array([o.inverse_temperature for o in orders], np.float32),
        limits=np.array([o.limits for o in orders], np.int32).reshape(count, 3),
        keys=keys,
        masked=masked,
        allowed=allowed,
        edit_indptr=indptr,
        edit_ids=ids,
        edits=edits,
    )


def _fill_keys(keys: NDArray[np.uint32], wanted: Sequence[Wanted]) -> None:
    """Seed, answer and position, in words."""
    for row, (_, _, history, _, _) in zip(keys, wanted):
        seed, position = history.seed, len(history.tokens)
        row[:] = (seed & _MASK, seed >> 32, history.stream, position & _MASK, position >> 32)


def needs_logits(wanted: Wanted, token: int) -> bool:
    """Whether `told` looks at the logits: for log probabilities, or to say what is wrong."""
    return wanted.orders.options.logprobs or token == NONE


def told(
    wanted: Wanted, token: int, logits: NDArray[np.float32] | None, vocabulary: int | None = None
) -> Sample:
    """The device's choice from `logits`, with log probabilities where asked for.

    `logits` are a row, of which the first `vocabulary` count; None where `needs_logits` says so.
    DeviceError when the logits are not numbers: no token can honestly be chosen from those.
    """
    if logits is None:
        return Sample(token)
    row = logits[:vocabulary]
    if token == NONE:
        raise DeviceError(
            f"the model computed {row.max()} among the logits at position "
            f"{wanted.history.position}, or allows no token there; its weights are damaged or its "
            "arithmetic overflowed"
        )
    options = wanted.orders.options
    return _with_logprobs(token, row, options.top_logprobs) if options.logprobs else Sample(token)


def _inverse(options: SamplingOptions) -> float:
    """1 / temperature, 0 for the largest."""
    if options.temperature == 0:
        return 0.0
    return _STEEPEST if options.temperature * _STEEPEST < 1 else 1 / options.temperature


def _limits(options: SamplingOptions) -> tuple[int, int, int]:
    """top_k, top_p in units of 2^-16, the least weight in units of 2^-30."""
    whole = 1 << SHARE_BITS
    share = whole if options.top_p == 1 else min(round(options.top_p * whole), whole - 1)
    return min(options.top_k, 2**31 - 1), share, max(1, ceil(options.min_p * (1 << UNIT_BITS)))


_NO_EDITS: Edits = (np.zeros(0, np.int32), np.zeros((0, 4), np.float32))


def _all_edits(
    wanted: Sequence[Wanted], vocabulary: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Where each row's edits begin, and the edits of all rows."""
    if not any(w.orders.edited or w.banned for w in wanted):
        return (np.zeros(len(wanted) + 1, np.int32), *_NO_EDITS)
    rows = [_edits(w, vocabulary) for w in wanted]
    ids, numbers = (np.concatenate(part) for part in zip(*rows))
    return np.cumsum([0, *(len(one) for one, _ in rows)], dtype=np.int32), ids, numbers


def _edits(wanted: Wanted, vocabulary: int) -> Edits:
    """Bias, penalties and bans. `repetition_penalty` counts the prompt too, the others do not."""
    if not (wanted.orders.edited or wanted.banned):
        return _NO_EDITS
    o, history = wanted.orders.options, wanted.history
    penalized = o.presence_penalty != 0 or o.frequency_penalty != 0
    repeated = history.tokens if o.repetition_penalty != 1 else ()
    output = history.output if penalized else ()
    lists = ([*o.logit_bias], repeated, output, wanted.banned)
    ids = np.unique(np.concatenate([np.array(part, np.int64) for part in lists]))
    numbers = np.tile(np.array([0, 1, 1, 0], np.float32), (len(ids), 1))
    numbers[np.searchsorted(ids, [*o.logit_bias]), 0] = [*o.logit_bias.values()]
    repetition = 1 / o.repetition_penalty, o.repetition_penalty
    numbers[np.searchsorted(ids, np.array(repeated, np.int64)), 1:3] = repetition
    seen, counts = np.unique(np.array(output, np.int64), return_counts=True)
    numbers[np.searchsorted(ids, seen), 3] = o.presence_penalty + o.frequency_penalty * counts
    numbers[np.searchsorted(ids, np.array(wanted.banned, np.int64)), 3] = np.inf
    exist = ids < vocabulary  # a prompt may hold tokens that are never chosen
    return ids[exist].astype(np.int32), numbers[exist]


def ranked(row: NDArray[np.floating], count: int) -> Ids:
    """Ids of the `count` largest values, largest first, equal ones by id: a total order."""
    if count >= len(row):
        return np.argsort(-row, kind="stable")
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= threshold)
    return ids[np.argsort(-row[ids], kind="stable")][:count]


def _with_logprobs(token: int, logits: NDArray[np.float32], count: int) -> Sample:
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    top = ranked(row, count) if count else ()
    return Sample(token, float(row[token]), tuple((int(i), float(row[i])) for i in top))
