"""Tokens written into the paged cache, compiled: every slot, and nothing but the slots."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_library import Array, KernelLibrary
from paged_cache import (
    DIMS,
    LAYER_USED,
    PAGE,
    Batch,
    Case,
    N,
    cache_buffer,
    filled,
    put,
    scales_of,
    spec,
    step_dims,
)

from sterna.base.dtype import BF16, F16, F32, I8, I32
from sterna.ir.expr import Buffer, wrap
from sterna.ir.loop import PrimFunc
from sterna.kernels.kv_cache import CacheLayout, StepIndex, kv_append, rope_append

CASES = [
    Case(1, 8),
    Case(2, 32, F16),
    Case(3, 64, BF16),
    Case(1, 80, F16),
    Case(2, 128),
    Case(2, 64, I8),
    Case(1, 80, I8),
]
TURNED = {8: 8, 32: 32, 64: 32, 80: 80, 128: 128}  # rotary dims of a head dim
BATCH = Batch((17, 40, 33, 1), (17, 3, 20, 1), seed=5)


def index(case: Case) -> StepIndex:
    s = spec(case)
    return StepIndex(s.positions, Buffer("seq_ids", I32, (N,)), s.page_indptr, s.page_table)


def rows(name: str, heads: int, case: Case) -> Buffer:
    return Buffer(name, F32, (N, wrap(heads * case.dim)))


def append(case: Case) -> PrimFunc:
    k, v = rows("k", case.kv_heads, case), rows("v", case.kv_heads, case)
    layout = CacheLayout.over(cache_buffer(case), PAGE, case.dim)
    return kv_append(f"append_{case.name}", (k, v), layout, index(case), DIMS)


def rope(case: Case) -> PrimFunc:
    qkv = (
        rows("q", case.heads, case),
        rows("k", case.kv_heads, case),
        rows("v", case.kv_heads, case),
    )
    half = wrap(TURNED[case.dim] // 2)
    angles = Buffer("cos", F32, (N, half)), Buffer("sin", F32, (N, half))
    layout = CacheLayout.over(cache_buffer(case), PAGE, case.dim)
    out = rows("out", case.heads, case)
    return rope_append(f"rope_{case.name}", qkv, angles, out, layout, index(case), DIMS)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    return KernelLibrary([make(case) for case in CASES for make in (append, rope)])


def written(case: Case, cache: Array, k: Array, v: Array) -> Array:
    """The cache with k and v [n, kv_heads, dim] in the slots of the step's tokens."""
    cache = cache.copy()
    for n, (position, s) in enumerate(zip(BATCH.positions, BATCH.seq_ids, strict=True)):
        page = BATCH.page_table[BATCH.page_indptr[s] + position // PAGE]
        put(case, cache[page, LAYER_USED], position % PAGE, k[n], v[n])
    return cache


def rotated(x: Array, cosine: Array, sine: Array) -> Array:
    """x [n, heads, dim] in f32, the operations in the order of the kernel."""
    half = cosine.shape[1]
    c, s = cosine[:, None], sine[:, None]
    low, high = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([low * c - high * s, high * c + low * s, x[..., 2 * half :]], axis=-1)


def held(case: Case, cache: Array) -> list[Array]:
    """What the kernel's parameters of the cache are given: apart, for the harness copies each."""
    return [cache] if case.dtype != I8 else [cache, scales_of(cache).copy()]


def together(case: Case, parts: list[Array]) -> Array:
    """Numbers of the one, scales of the other."""
    if case.dtype != I8:
        return parts[0]
    whole, elements = parts[0].copy(), PAGE * case.dim
    whole[..., elements:] = parts[1].view(np.int8)[..., elements:]
    return whole


def same_bits(a: Array, b: Array) -> bool:
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_kv_append(library: KernelLibrary, case: Case) -> None:
    rng = np.random.default_rng(3)
    k, v = rng.normal(0, 1, (2, sum(BATCH.fresh), case.kv_heads, case.dim)).astype(np.float32)
    cache, _ = filled(case, BATCH)
    expected = written(case, cache, k, v)
    func = library.funcs[f"append_{case.name}"]
    where = (BATCH.positions, BATCH.seq_ids, BATCH.page_indptr, BATCH.page_table)
    parts = held(case, cache)
    values = (k.reshape(len(k), -1), v.reshape(len(v), -1), *parts, *where)
    library.run(func.name, dict(zip(func.params, values, strict=True)), step_dims(BATCH, 1))
    assert same_bits(together(case, parts), expected)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_rope_append(library: KernelLibrary, case: Case) -> None:
    rng = np.random.default_rng(4)
    count = sum(BATCH.fresh)
    q = rng.normal(0, 1, (count, case.heads, case.dim)).astype(np.float32)
    k, v = rng.normal(0, 1, (2, count, case.kv_heads, case.dim)).astype(np.float32)
    angle = rng.uniform(0, 6, (count, TURNED[case.dim] // 2))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    cache, _ = filled(case, BATCH)
    expected = written(case, cache, rotated(k, cosine, sine), v)
    out = np.full((count, case.heads * case.dim), np.nan, np.float32)
    func = library.funcs[f"rope_{case.name}"]
    where = (BATCH.positions, BATCH.seq_ids, BATCH.page_indptr, BATCH.page_table)
    flat = (x.reshape(count, -1) for x in (q, k, v))
    parts = held(case, cache)
    values = (*flat, cosine, sine, *parts, *where, out)
    library.run(func.name, dict(zip(func.params, values, strict=True)), step_dims(BATCH, 1))
    assert same_bits(out, rotated(q, cosine, sine).reshape(count, -1))
    assert same_bits(together(case, parts), expected)
