"""Memory: planned exactly, aligned, with slack; weights laid out in tiles of rows."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_library import PAGE_BYTES, VOCAB, toy_manifest

from sterna.base.artifact import Param
from sterna.base.dtype import dtype
from sterna.base.errors import Error, OutOfMemory
from sterna.base.target import KINDS
from sterna.runtime import host
from sterna.runtime.devices import devices
from sterna.runtime.memory import (
    ALIGNMENT,
    SLACK,
    Region,
    check_fits,
    memory_plan,
    pack,
    packed_bytes,
    packed_shape,
    padded,
    pages_that_fit,
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 9)),
    st.integers(1, 16),
    st.sampled_from((1, 2, 3, 4)),
    st.sampled_from(("u32", "f16", "f32", "u8", "i8", "f64")),
)
def test_rows_are_interleaved(shape: tuple[int, int], part: int, streams: int, kind: str) -> None:
    """In each stream lie its rows of every tile, column by column; rows past the last are zero."""
    (rows, width), tile = shape, part * streams
    param = Param("w", kind, shape, tile, streams)
    source = (np.arange(rows * width) % 127 + 1).astype(dtype(kind).numpy).reshape(shape)
    out = np.zeros(packed_shape(param), source.dtype)
    pack(source, param, out)
    blocks = -(-rows // tile)
    assert out.shape == ((streams,) if streams > 1 else ()) + (blocks, width, part)
    assert out.nbytes == packed_bytes(param)
    for place, found in np.ndenumerate(out.reshape(streams, blocks, width, part)):
        stream, block, column, inside = place
        row = block * tile + stream * part + inside
        assert found == (source[row, column] if row < rows else 0), place


@pytest.mark.parametrize(
    ("param", "shape"),
    [
        (Param("w", "u32", (70, 12)), (70, 12)),
        (Param("w", "u32", (70, 12), 32), (3, 12, 32)),
        (Param("w", "u32", (70, 12), 32, 4), (4, 3, 12, 8)),
        (Param("w", "u32", (64, 12), 32, 2), (2, 2, 12, 16)),
        (Param("b", "u32", (70,), 32, 4), (70,)),
    ],
)
def test_shapes_in_memory(param: Param, shape: tuple[int, ...]) -> None:
    assert packed_shape(param) == shape
    assert packed_bytes(param) == 4 * np.prod(shape)


@pytest.mark.parametrize("param", [Param("w", "f16", (5, 7)), Param("b", "f16", (5,), 4)])
def test_other_weights_stay(param: Param) -> None:
    source = np.arange(np.prod(param.shape), dtype=np.float16).reshape(param.shape)
    out = np.zeros(packed_shape(param), dtype=np.float16)
    pack(source, param, out)
    assert (out == source).all()


def test_the_plan_adds_up() -> None:
    plan = memory_plan(toy_manifest(), num_pages=10, threads=3)
    assert plan.weights == padded(24 * 3 * 4) + padded(VOCAB * 4)
    assert plan.kv_cache == padded(10 * PAGE_BYTES)
    assert plan.arena == padded(4)
    assert plan.scratch == 3 * padded(12)
    assert plan.io == 3 * padded(160) + padded(28) + padded(256) + 4 * padded(160) + padded(
        40 * VOCAB * 4
    )
    assert plan.total == plan.weights + plan.kv_cache + plan.arena + plan.scratch + plan.io


def test_pages_that_fit_fit() -> None:
    manifest = toy_manifest()
    for memory in (0, 10_000, 12_345, 100_000):
        pages = pages_that_fit(manifest, 2, memory)
        if pages:
            assert memory_plan(manifest, pages, 2).total <= memory
        assert memory_plan(manifest, pages + 3, 2).total > memory


def test_what_does_not_fit_is_refused_with_its_parts() -> None:
    plan = memory_plan(toy_manifest(), num_pages=10, threads=1)
    check_fits(plan, plan.total)
    check_fits(plan, None)
    with pytest.raises(OutOfMemory, match=r"weights .* KV cache .* is left; use a smaller"):
        check_fits(plan, plan.total - 1)


def test_a_region_is_zeroed_aligned_and_has_slack() -> None:
    region = Region(sum(padded(size) for size in (1, 64, 1000)))
    pieces = [region.take(size) for size in (1, 64, 1000)]
    for piece in pieces:
        assert piece.ctypes.data % ALIGNMENT == 0
        assert not piece.any()
        piece[:] = 255
    for piece in pieces:
        after = ctypes.string_at(piece.ctypes.data + len(piece), SLACK)
        assert after == bytes(SLACK)
    with pytest.raises(Error, match="too small"):
        region.take(3 << 20)


def test_memory_that_cannot_be_had() -> None:
    with pytest.raises(OutOfMemory):
        Region(2**62)


def test_what_the_machine_tells() -> None:
    assert host.usable_cores() >= 1
    available, total = host.available_memory(), host.total_memory()
    assert available is None or available > 0
    assert total is None or available is None or available <= total


def test_devices_are_told_truthfully(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {report.name.partition(":")[0]: report for report in devices()}
    cpu, others = found.pop("cpu"), found.values()
    assert (cpu.name, cpu.present) == ("cpu", True)
    assert str(host.usable_cores()) in cpu.detail
    assert found.keys() == set(KINDS) - {"cpu"}
    assert all(report.present or report.missing for report in others)
    monkeypatch.setenv("STERNA_CC", "tcc")
    assert any("tcc (STERNA_CC)" in report.detail for report in devices())
