"""A batch over a paged cache in numpy: what attention kernels read, and the plain answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import F32, I8, I32, DType
from sterna.ir.expr import Buffer, Var, wrap
from sterna.kernels.attention import AttentionSpec
from sterna.kernels.kv_cache import LAYER, CacheLayout
from sterna.ops.attention import slot_elements

Array = NDArray[Any]
PAGE, LAYERS, LAYER_USED, PIECE, PIECES = 16, 2, 1, 32, 8
N, T, B, P = (Var(name, lo=0) for name in ("n", "t", "b", "p"))
DIMS = (N, T, B, P)


@dataclass(frozen=True)
class Case:
    """One kind of attention."""

    group: int
    dim: int
    dtype: DType = F32
    window: int = -1
    sinks: int = 0
    kv_heads: int = 2
    softcap: float = 0.0

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads

    @property
    def name(self) -> str:
        window = f"_w{self.window}_{self.sinks}" if self.window >= 0 else ""
        bent = "_bent" if self.softcap else ""
        return f"g{self.group}_d{self.dim}_{self.dtype}{window}{bent}"


def slots(case: Case) -> int:
    """Elements of a page's keys, or values, of one head."""
    return PAGE * slot_elements(case.dtype, case.dim)


def cache_buffer(case: Case) -> Buffer:
    shape = (P, wrap(LAYERS), wrap(2), wrap(case.kv_heads), wrap(slots(case)))
    return Buffer("cache", case.dtype, shape)


def spec(case: Case) -> AttentionSpec:
    q_shape = (N, wrap(case.heads * case.dim))
    return AttentionSpec(
        heads=case.heads,
        scale=case.dim**-0.5,
        window=case.window,
        sinks=case.sinks,
        piece=PIECE,
        pieces=PIECES,
        q=Buffer("q", F32, q_shape),
        cache=CacheLayout.over(cache_buffer(case), PAGE, case.dim),
        positions=Buffer("positions", I32, (N,)),
        page_indptr=Buffer("page_indptr", I32, (B + 1,)),
        page_table=Buffer("page_table", I32, (P,)),
        tile_start=Buffer("tile_start", I32, (T,)),
        tile_size=Buffer("tile_size", I32, (T,)),
        tile_seq=Buffer("tile_seq", I32, (T,)),
        out=Buffer("out", F32, q_shape),
        softcap=case.softcap,
    )


def partial_buffer(case: Case) -> Buffer:
    return Buffer("partial", F32, (N, wrap(case.heads), wrap(PIECES), wrap(case.dim + 2)))


@dataclass
class Batch:
    """Sequences of `lengths` cached tokens of which the last `fresh` are queries of the step."""

    lengths: tuple[int, ...]
    fresh: tuple[int, ...]
    seed: int = 0
    page_indptr: Array = field(init=False)
    page_table: Array = field(init=False)

    def __post_init__(self) -> None:
        pages = [-(-length // PAGE) for length in self.lengths]
        self.page_indptr = np.cumsum([0, *pages]).astype(np.int32)
        order = np.random.default_rng(self.seed).permutation(sum(pages))
        self.page_table = order.astype(np.int32)

    @property
    def positions(self) -> Array:
        parts = [np.arange(n - f, n) for n, f in zip(self.lengths, self.fresh, strict=True)]
        return np.concatenate(parts).astype(np.int32)

    @property
    def seq_ids(self) -> Array:
        return np.repeat(np.arange(len(self.lengths)), self.fresh).astype(np.int32)

    def tiles(self, most: int) -> tuple[Array, Array, Array]:
        """(start, size, sequence) of runs of at most `most` queries."""
        rows, first = [], 0
        for sequence, count in enumerate(self.fresh):
            for i in range(0, count, most):
                rows.append((first + i, min(most, count - i), sequence))
            first += count
        start, size, seq = np.array(rows, np.int32).T
        return start.copy(), size.copy(), seq.copy()


def scales_of(cache: Array) -> Array:
    """The memory of a cache of i8 as its scales are seen."""
    return cache.view(np.float16)


def put(case: Case, page: Array, slot: int, k: Array, v: Array) -> None:
    """Write k and v [kv_heads, dim], f32, into a slot of one layer's page [2, kv_heads, ...]."""
    elements = PAGE * case.dim
    for which, x in enumerate((k, v)):
        numbers, scale = rounded(case, x)
        keys = page[which, :, :elements].reshape(case.kv_heads, case.dim, PAGE)
        values = page[which, :, :elements].reshape(case.kv_heads, PAGE, case.dim)
        if which == 0:
            keys[:, :, slot] = numbers
        else:
            values[:, slot] = numbers
        page[which, :, :elements] = (keys if which == 0 else values).reshape(case.kv_heads, -1)
        if case.dtype == I8:
            scales_of(page[which, :, elements:])[:, slot] = scale


def rounded(case: Case, x: Array) -> tuple[Array, Array]:
    """What the cache keeps of x [kv_heads, dim]: (elements, scale of each head)."""
    if case.dtype != I8:
        return x.astype(case.dtype.numpy), np.ones(len(x))
    x = x.astype(np.float32)
    scale = (np.abs(x).max(axis=1) / np.float32(127)).astype(np.float16)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale.astype(np.float32), np.float32(0))
    steps = np.clip(x * inverse[:, None], np.float32(-127), np.float32(127))
    return np.floor(steps + np.float32(0.5)).astype(np.int8), scale


def filled(case: Case, batch: Batch) -> tuple[Array, list[tuple[Array, Array]]]:
    """(cache with NaNs in unused slots, [(k, v) of each sequence, [tokens, kv_heads, dim]])."""
    rng = np.random.default_rng(batch.seed + 1)
    total = int(batch.page_indptr[-1])
    shape = (total, LAYERS, 2, case.kv_heads, slots(case))
    cache = np.full(shape, np.nan if case.dtype.is_float else -1).astype(case.dtype.numpy)
    pairs = []
    for s, length in enumerate(batch.lengths):
        k, v = rng.normal(0, 1, (2, length, case.kv_heads, case.dim)).astype(np.float32)
        for token in range(length):
            page = batch.page_table[batch.page_indptr[s] + token // PAGE]
            put(case, cache[page, LAYER_USED], token % PAGE, k[token], v[token])
        pairs.append((kept(case, k), kept(case, v)))
    return cache, pairs


def kept(case: Case, x: Array) -> Array:
    """x [tokens, kv_heads, dim] as the cache gives it back, in f64."""
    numbers, scales = zip(*(rounded(case, token) for token in x), strict=True)
    return np.stack(numbers).astype(np.float64) * np.stack(scales).astype(np.float64)[..., None]


def plain_attention(case: Case, batch: Batch, q: Array, pairs: list[tuple[Array, Array]]) -> Array:
    """softmax(scale q k^T) v in f64, query by query."""
    out = np.empty((len(q), case.heads, case.dim))
    queries = q.reshape(len(q), case.heads, case.dim).astype(np.float64)
    for n, (position, s) in enumerate(zip(batch.positions, batch.seq_ids, strict=True)):
        k, v = pairs[s]
        token = np.arange(len(k))
        seen = token <= position
        if case.window >= 0:
            seen &= (token > position - case.window) | (token < case.sinks)
        for h in range(case.heads):
            scores = k[seen, h // case.group] @ queries[n, h] * case.dim**-0.5
            if case.softcap:
                scores = case.softcap * np.tanh(scores / case.softcap)
            weights = np.exp(scores - scores.max())
            out[n, h] = weights @ v[seen, h // case.group] / weights.sum()
    return out.reshape(len(q), -1)


def step_dims(batch: Batch, tiles: int) -> dict[Var, int]:
    values = (sum(batch.fresh), tiles, len(batch.lengths), int(batch.page_indptr[-1]))
    return {**dict(zip(DIMS, values, strict=True)), LAYER: LAYER_USED}
