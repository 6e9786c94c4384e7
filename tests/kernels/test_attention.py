"""Paged attention, compiled, against plain attention in numpy; the same bits however it is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_library import Array, KernelLibrary
from paged_cache import (
    DIMS,
    LAYER_USED,
    PAGE,
    PIECES,
    Batch,
    Case,
    filled,
    partial_buffer,
    plain_attention,
    put,
    scales_of,
    spec,
    step_dims,
)

from sterna.base.dtype import BF16, F16, I8
from sterna.ir.loop import PrimFunc
from sterna.kernels.attention import attention_split, attention_tiles

TILE = 16
CASES = [
    Case(1, 8),
    Case(2, 32, F16),
    Case(3, 64, BF16),
    Case(4, 80, F16, window=40, sinks=4),
    Case(8, 128, F16, kv_heads=1),
    Case(7, 16, F16),
    Case(3, 32, F16, window=7, sinks=0),
    Case(2, 64, window=33, sinks=1),
    Case(1, 128, BF16, window=64, sinks=16),
    Case(4, 64, I8),
    Case(7, 32, I8, window=20, sinks=3),
    Case(2, 32, F16, softcap=1.5),
]
BATCHES = [
    Batch((1,), (1,)),
    Batch((200,), (45,), seed=1),
    Batch((17, 32, 33, 100, 16), (17, 1, 5, 20, 16), seed=2),
    Batch((256, 31, 64, 65), (1, 1, 1, 1), seed=3),
]


def kernels(case: Case) -> list[PrimFunc]:
    s = spec(case)
    split = attention_split(f"split_{case.name}", s, DIMS, partial_buffer(case))
    wide = replace(s, vectors=2)  # of pages, and of channels, at once
    return [
        attention_tiles(f"tiles_{case.name}", s, DIMS, TILE),
        attention_tiles(f"wide_{case.name}", wide, DIMS, TILE),
        split,
    ]


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary([f for case in CASES for f in kernels(case)])


def run(
    library: KernelLibrary, kind: str, case: Case, batch: Batch, q: Array, cache: Array, most: int
) -> Array:
    func = library.funcs[f"{kind}_{case.name}"]
    start, size, seq = batch.tiles(most)
    n = len(q)
    held = [cache] if case.dtype != I8 else [cache, scales_of(cache)]
    values = [q, *held, batch.positions, batch.page_indptr, batch.page_table, start, size, seq]
    out = np.full(q.shape, np.nan, np.float32)
    values.append(out)
    if kind == "split":
        values.append(np.full((n, case.heads, PIECES, case.dim + 2), np.nan, np.float32))
    library.run(func.name, dict(zip(func.params, values, strict=True)), step_dims(batch, len(seq)))
    return out


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("number", range(len(BATCHES)))
def test_attention(library: KernelLibrary, case: Case, number: int) -> None:
    batch = BATCHES[number]
    cache, pairs = filled(case, batch)
    rng = np.random.default_rng(number)
    q = rng.normal(0, 1, (sum(batch.fresh), case.heads * case.dim)).astype(np.float32)
    whole = run(library, "tiles", case, batch, q, cache, TILE)
    exact = plain_attention(case, batch, q, pairs)
    assert np.abs(whole - exact).max() < 3e-6
    for kind, most in (("tiles", 1), ("tiles", 5), ("wide", TILE), ("wide", 5), ("split", 1)):
        assert np.array_equal(whole, run(library, kind, case, batch, q, cache, most)), (kind, most)


def queries(case: Case, batch: Batch) -> Array:
    rng = np.random.default_rng(9)
    return rng.normal(0, 1, (sum(batch.fresh), case.heads * case.dim)).astype(np.float32)


@pytest.mark.parametrize("case", [c for c in CASES if c.window >= 0], ids=lambda c: c.name)
@pytest.mark.parametrize("kind", ["tiles", "wide", "split"])
def test_pages_that_the_window_left_are_not_read(
    library: KernelLibrary, case: Case, kind: str
) -> None:
    """The engine may have given them away: what lies there now is somebody else's."""
    batch = Batch((200, 131), (1, 1) if kind == "split" else (30, 3), seed=4)
    q = queries(case, batch)
    cache, _ = filled(case, batch)
    most = 1 if kind == "split" else TILE
    whole = run(library, kind, case, batch, q, cache, most)
    left = 0
    for s, (length, fresh) in enumerate(zip(batch.lengths, batch.fresh, strict=True)):
        first_seen = max(0, length - fresh - case.window + 1)
        for u in range(first_seen // PAGE):
            if u * PAGE >= case.sinks:
                cache[batch.page_table[batch.page_indptr[s] + u]].view(np.uint8)[...] = 0xFF
                left += 1
    assert left > 4
    assert np.array_equal(whole, run(library, kind, case, batch, q, cache, most))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("kind", ["tiles", "wide"])
def test_a_token_touches_nothing_before_it(library: KernelLibrary, case: Case, kind: str) -> None:
    """Not even where it is no number, in a step that computes both."""
    batch = Batch((150,), (40,), seed=6)
    q = queries(case, batch)
    cache, _ = filled(case, batch)
    whole = run(library, kind, case, batch, q, cache, TILE)
    page = cache[batch.page_table[149 // PAGE], LAYER_USED]
    nothing = np.full((case.kv_heads, case.dim), np.nan, np.float32)
    with np.errstate(invalid="ignore"):
        put(case, page, 149 % PAGE, nothing, nothing)
    poisoned = run(library, kind, case, batch, q, cache, TILE)
    assert np.array_equal(whole[:-1], poisoned[:-1])
    assert not np.array_equal(whole[-1], poisoned[-1])
