"""Paged attention, compiled, against plain attention in numpy; the same bits however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_library import Array, KernelLibrary
from paged_cache import (
    DIMS,
    PIECES,
    Batch,
    Case,
    filled,
    partial_buffer,
    plain_attention,
    spec,
    step_dims,
)

from sterna.base.dtype import BF16, F16
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
    return [attention_tiles(f"tiles_{case.name}", s, DIMS, TILE), split]


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary([f for case in CASES for f in kernels(case)])


def run(
    library: KernelLibrary, kind: str, case: Case, batch: Batch, q: Array, cache: Array, most: int
) -> Array:
    func = library.funcs[f"{kind}_{case.name}"]
    start, size, seq = batch.tiles(most)
    n = len(q)
    values = [q, cache, batch.positions, batch.page_indptr, batch.page_table, start, size, seq]
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
    for kind, most in (("tiles", 1), ("tiles", 5), ("split", 1)):
        assert np.array_equal(whole, run(library, kind, case, batch, q, cache, most)), (kind, most)
