"""What the engine asks of a device's sampler, and its meaning in numpy.

In: for each row to sample, which row of the last step's logits it is and how to choose. Out: a
token a row. A library's own kernel does it where there is one; `sample_rows` is what it must
equal, and serves devices without arithmetic of their own. Weights are whole numbers, so the same
token comes out of both: see kernels/sample.py for the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import RequestError
from sterna.runtime.philox import draw_bits

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]

UNIT_BITS = 30  # a weight of 1 is 2^30
SHARE_BITS = 16  # a top_p of 1 is 2^16
NONE = -1  # where the largest logit is no number


@dataclass(frozen=True, slots=True)
class SampleInput:
    """r rows to sample. Arrays are contiguous; `vocabulary` ids exist, logits past them do not.

    `limits` are top_k (0: all), top_p in units of 2^-16, and the least weight in units of 2^-30.
    `inverse_temperature` 0 takes the largest. `keys` are seed, answer and position in words, low
    first. `allowed` counts where `masked` is not 0. Edits are unique within a row: x becomes
    x + bias, then times the second where positive and times the third elsewhere, then minus the
    fourth.
    """

    vocabulary: int
    rows: Ints  # [r] rows of the last step's logits
    inverse_temperature: Floats  # [r]
    limits: Ints  # [r, 3]
    keys: Words  # [r, 5]
    masked: Ints  # [r]
    allowed: Words  # [r, ceil(vocab_size / 32)], bit i of word j is token 32 j + i
    edit_indptr: Ints  # [r + 1]
    edit_ids: Ints  # [e]
    edits: Floats  # [e, 4] bias, scale where positive, scale elsewhere, what is taken away


def check_sample(given: SampleInput, rows: int, vocab_size: int) -> None:
    """RequestError unless a kernel can read all of it within its bounds.

    `rows` is the number of logit rows of the last step.
    """
    r, e = len(given.rows), len(given.edit_ids)
    wanted: dict[str, tuple[tuple[int, ...], type]] = {
        "rows": ((r,), np.int32), "inverse_temperature": ((r,), np.float32),
        "limits": ((r, 3), np.int32), "keys": ((r, 5), np.uint32), "masked": ((r,), np.int32),
        "allowed": ((r, -(-vocab_size // 32)), np.uint32), "edit_indptr": ((r + 1,), np.int32),
        "edit_ids": ((e,), np.int32), "edits": ((e, 4), np.float32),
    }  # fmt: skip
    for name, (shape, kind) in wanted.items():
        array = getattr(given, name)
        if array.shape != shape or array.dtype != kind or not array.flags.c_contiguous:
            raise RequestError(
                f"{name} of a sample must be {np.dtype(kind)}{list(shape)} in one piece, "
                f"not {array.dtype}{list(array.shape)}"
            )
    if r == 0 or not 0 < given.vocabulary <= vocab_size:
        raise RequestError(
            f"{r} rows over {given.vocabulary} tokens cannot be sampled; a row at least is "
            f"needed, and 1 to {vocab_size} tokens"
        )
    indptr, ids = given.edit_indptr, given.edit_ids
    ordered = indptr[0] == 0 and indptr[-1] == e and (indptr[1:] >= indptr[:-1]).all()
    if not ordered or not _within(given.rows, rows) or not _within(ids, given.vocabulary):
        raise RequestError(
            f"rows of a sample must lie in 0..{rows - 1}, edits in 0..{given.vocabulary - 1}, "
            "and edit_indptr must rise from 0 to their number"
        )


def freeze(given: SampleInput) -> None:
    """Forbid that anything of it but its keys changes: what was checked of it stays so."""
    for name in _CONSTANT:
        getattr(given, name).flags.writeable = False


def is_frozen(given: SampleInput) -> bool:
    """Whether `freeze` was called."""
    return not any(getattr(given, name).flags.writeable for name in _CONSTANT)


_CONSTANT = (
    "rows", "inverse_temperature", "limits", "masked", "allowed", "edit_indptr", "edit_ids",
    "edits",
)  # fmt: skip


def _within(values: Ints, end: int) -> bool:
    return len(values) == 0 or (int(values.min()) >= 0 and int(values.max()) < end)


def sample_rows(logits: Floats, given: SampleInput) -> Ints:
    """The token of each row, NONE for a row whose largest logit is infinite or no number."""
    plain = (
        (given.inverse_temperature == 0) & (given.masked == 0) & (np.diff(given.edit_indptr) == 0)
    )
    tokens = _largest(logits[given.rows, : given.vocabulary]) if plain.any() else given.rows.copy()
    for i in map(int, np.flatnonzero(~plain)):
        tokens[i] = _token(_edited(logits, given, i), given, i)
    return tokens


def _largest(x: Floats) -> Ints:
    """The first largest of each row, at once."""
    found = x.argmax(axis=1)
    finite = np.abs(x[np.arange(len(x)), found]) <= np.float32(3e38)
    return np.where(finite, found, NONE).astype(np.int32)


def _edited(logits: Floats, given: SampleInput, i: int) -> Floats:
    x = logits[given.rows[i], : given.vocabulary].copy()
    if given.masked[i]:
        bits = np.unpackbits(given.allowed[i].view(np.uint8), bitorder="little")
        x[bits[: len(x)] == 0] = -np.inf
    own = slice(given.edit_indptr[i], given.edit_indptr[i + 1])
    ids, (bias, above, below, less) = given.edit_ids[own], given.edits[own].T
    with np.errstate(invalid="ignore", over="ignore"):
        moved = x[ids] + bias
        x[ids] = moved * np.where(moved > 0, above, below) - less
    return x


def _token(x: Floats, given: SampleInput, i: int) -> int:
    peak = x.max()
    if not abs(peak) <= np.float32(3e38):
        return NONE
    if given.inverse_temperature[i] == 0:
        return int(x.argmax())
    weights = weigh(x, peak, given.inverse_temperature[i]).astype(np.int64)
    kept = _kept(weights, *map(int, given.limits[i]))
    total = np.cumsum(kept)
    seed_low, seed_high, stream, low, high = map(int, given.keys[i])
    bits = draw_bits(seed_high << 32 | seed_low, stream, high << 32 | low)
    point = bits * int(total[-1]) >> 64
    return int(np.searchsorted(total, point, side="right"))


def _kept(weights: NDArray[np.int64], top_k: int, share: int, floor: int) -> NDArray[np.int64]:
    """The weights that may be drawn, 0 for the others."""
    least = ties = 0
    if 0 < top_k < len(weights):
        least = int(np.partition(weights, -top_k)[-top_k])
        ties = top_k - int((weights > least).sum()) if least else 0
    if share < 1 << SHARE_BITS:
        mass = int(weights[weights > least].sum()) + least * ties
        target = max(mass * share >> SHARE_BITS, 1)
        falling = np.sort(weights)[::-1]
        least = int(falling[np.searchsorted(np.cumsum(falling), target)])
        ties = -(-(target - int(weights[weights > least].sum())) // least)
    kept = np.where(weights > least, weights, 0)
    if least:
        kept[np.flatnonzero(weights == least)[:ties]] = least
    kept[kept < floor] = 0
    return kept


def weigh(x: Floats, peak: np.float32, inverse: np.float32) -> Ints:
    """2^30 * exp((x - peak) * inverse), operation by operation as kernels/weights.py has it."""
    with np.errstate(over="ignore"):
        halvings = np.minimum((peak - x) * (inverse * np.float32(_LOG2E)), np.float32(31))
    steps = (halvings * np.float32(1 << 24)).astype(np.int32)
    share = (steps & (1 << 24) - 1).astype(np.float32) * np.float32(2**-24)
    p = np.full_like(steps, _TERMS[0])
    for term in (*_TERMS[1:], 1 << 24):
        p = term - (share * p.astype(np.float32)).astype(np.int32)
    found: Ints = (p << (UNIT_BITS - 24)) >> (steps >> 24)
    return found


# Of 2^-f, for f from 0 to 1: see kernels/weights.py.
_TERMS = (16850, 156793, 929616, 4030137, 11629076)
_LOG2E = 1.4426950408889634
