"""The sampler: one row of logits and a request's options in, one token out.

Stateless, so a token depends on nothing but its own row, its own history, and (seed, answer,
position): not on its neighbours in the batch, nor on having been preempted. Order: bias,
penalties, what is allowed, temperature, top-k, top-p, min-p, draw. Equal logits rank by lowest id.
Log probabilities are the model's own, before any of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import DeviceError
from sterna.engine.options import SamplingOptions
from sterna.runtime.philox import uniform

VERSION = 1  # raised when the same logits, options and seed would give other tokens

Row = NDArray[np.float64]  # [vocab_size]
Ids = NDArray[np.intp]
Allowed = NDArray[np.bool_]  # [vocab_size]: what a grammar lets come next


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


@dataclass(frozen=True, slots=True)
class Sample:
    """A token; log probabilities when asked for, `top` likeliest first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def takes_the_largest(options: SamplingOptions) -> bool:
    """Whether these options ask for the largest of the model's own logits and nothing else.

    Then `sample` gives what `logits.argmax()` gives, and whole batches can be chosen at once.
    """
    adjusted = options.logit_bias or options.repetition_penalty != 1
    penalized = options.presence_penalty or options.frequency_penalty
    greedy = options.temperature == 0 and not options.logprobs
    return greedy and not adjusted and not penalized and options.min_tokens == 0


def sample(
    logits: NDArray[np.float32],
    options: SamplingOptions,
    history: History,
    banned: Sequence[int] = (),
    allowed: Allowed | None = None,
) -> Sample:
    """Choose the next token from `logits` [vocab_size]: one of `allowed`, none of `banned`.

    DeviceError when the logits are not numbers: no token can honestly be chosen from those.
    """
    row = adjusted(logits, options, history, banned)
    if allowed is not None:
        row[~allowed] = -np.inf
    peak = row.max()
    if not np.isfinite(peak):
        raise DeviceError(
            f"the model computed {peak} among the logits at position {history.position}; "
            "its weights are damaged or its arithmetic overflowed"
        )
    token = int(row.argmax()) if options.temperature == 0 else _draw(row, options, history)
    if not options.logprobs:
        return Sample(token)
    return _with_logprobs(token, logits, options.top_logprobs)


def adjusted(
    logits: NDArray[np.float32],
    options: SamplingOptions,
    history: History,
    banned: Sequence[int] = (),
) -> Row:
    """Bias and penalties. `repetition_penalty` counts the prompt too, the others do not."""
    row = logits.astype(np.float64)
    for token, bias in options.logit_bias.items():
        row[token] += bias
    if options.repetition_penalty != 1:
        seen = np.unique(np.array(history.tokens, np.intp))
        scale = options.repetition_penalty
        row[seen] = np.where(row[seen] > 0, row[seen] / scale, row[seen] * scale)
    if options.presence_penalty or options.frequency_penalty:
        seen, counts = np.unique(np.array(history.output, np.intp), return_counts=True)
        row[seen] -= options.presence_penalty + options.frequency_penalty * counts
    row[list(banned)] = -np.inf
    return row


def ranked(row: NDArray[np.floating], count: int) -> Ids:
    """Ids of the `count` largest values, largest first, equal ones by id: a total order."""
    if count >= len(row):
        return np.argsort(-row, kind="stable")
    threshold = np.partition(row, len(row) - count)[len(row) - count]
    ids = np.flatnonzero(row >= threshold)
    return ids[np.argsort(-row[ids], kind="stable")][:count]


def _draw(row: Row, options: SamplingOptions, history: History) -> int:
    ids, weights = candidates(row, options)
    total = np.cumsum(weights)
    point = uniform(history.seed, history.stream, history.position) * total[-1]
    index = int(np.searchsorted(total, point, side="right"))
    return int(ids[min(index, len(ids) - 1)])


def candidates(row: Row, options: SamplingOptions) -> tuple[Ids, Row]:
    """Ids that may be drawn and their weights, not normalized, in a fixed order."""
    weights = np.exp((row - row.max()) / options.temperature)
    if options.top_k == 0 and options.top_p == 1:
        ids = np.flatnonzero(weights >= max(options.min_p, np.finfo(np.float64).tiny))
        return ids, weights[ids]
    ids = ranked(row, options.top_k or len(row))
    kept = weights[ids]
    before = np.cumsum(kept) - kept  # mass ahead of each: the first always stays
    ids = ids[(before <= 0) | (before < options.top_p * kept.sum())]
    ids = ids[weights[ids] >= options.min_p]
    return ids, weights[ids]


def _with_logprobs(token: int, logits: NDArray[np.float32], count: int) -> Sample:
    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    top = ranked(row, count) if count else ()
    return Sample(token, float(row[token]), tuple((int(i), float(row[i])) for i in top))
