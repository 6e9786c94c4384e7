"""Attention of work groups has the bits of the CPU's, however many queries a group takes.

The loop programs are compiled for this CPU with every thread loop run as a loop; what targets make
of them is in `tests/device`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_library import KernelLibrary
from paged_cache import DIMS, PAGE, Batch, Case, filled, spec
from test_attention import BATCHES, TILE, queries, run

from sterna.base.dtype import BF16, F16, I8
from sterna.kernels.attention import attention_tiles
from sterna.kernels.attention_groups import attention_tiles_groups, group_queries

CASES = [
    Case(1, 8),
    Case(3, 16, F16, window=20, sinks=3),
    Case(2, 16, I8, window=33, sinks=1),
    Case(4, 16, BF16, softcap=1.5),
]
TOGETHER = (1, 4)


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    made = [attention_tiles(f"tiles_{c.name}", spec(c), DIMS, TILE) for c in CASES]
    for c in CASES:
        for count in TOGETHER:
            name = f"group{count}_{c.name}"
            made.append(attention_tiles_groups(name, spec(c), DIMS, TILE, count))
    return KernelLibrary(made)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_bits_are_those_of_the_cpu(library: KernelLibrary, case: Case) -> None:
    for batch in BATCHES:
        cache, _ = filled(case, batch)
        q = queries(case, batch)
        expected = run(library, "tiles", case, batch, q, cache, TILE).view(np.uint32)
        for count in TOGETHER:
            for most in (TILE, 5, 1):  # 5: a group's last queries are missing
                got = run(library, f"group{count}", case, batch, q, cache, most)
                assert np.array_equal(got.view(np.uint32), expected), (batch, count, most)


@pytest.mark.parametrize("case", [c for c in CASES if c.window >= 0], ids=lambda c: c.name)
def test_pages_that_the_window_left_are_not_read(library: KernelLibrary, case: Case) -> None:
    batch = Batch((200,), (7,), seed=4)
    q = queries(case, batch)
    cache, _ = filled(case, batch)
    whole = run(library, "group4", case, batch, q, cache, TILE)
    first_seen = 200 - 7 - case.window + 1
    left = [u for u in range(first_seen // PAGE) if u * PAGE >= case.sinks]
    for u in left:
        cache[batch.page_table[u]].view(np.uint8)[...] = 0xFF
    assert len(left) > 4
    assert np.array_equal(whole, run(library, "group4", case, batch, q, cache, TILE))


def test_queries_fill_a_group_as_far_as_memory_goes() -> None:
    def of(bytes_: int, group: int, dim: int = 128, piece: int = 128) -> int:
        s = replace(spec(Case(group, dim, F16)), piece=piece)
        return group_queries(s, 32, bytes_)

    assert [of(49152, group) for group in (1, 2, 4, 8, 16)] == [8, 4, 2, 1, 1]
    assert [of(16384, group) for group in (1, 3, 4, 8)] == [8, 2, 2, 1]
    assert of(16384, 4, piece=1024) == 1  # a piece's scores alone fill it
    assert of(0, 1) == 1
    assert group_queries(spec(Case(1, 8)), 6, 49152) == 2  # what divides the tile


def test_queries_that_see_all_of_their_sequence() -> None:
    """An encoder's: tiles that are not causal, in which each position is the last token's."""
    case, batch = Case(2, 16), Batch((37, 5), (37, 5), seed=3)
    s = replace(spec(case), causal=False)
    made = [attention_tiles(f"tiles_{case.name}", s, DIMS, TILE)]
    made.append(attention_tiles_groups(f"group4_{case.name}", s, DIMS, TILE, 4))
    library = KernelLibrary(made)
    cache, _ = filled(case, batch)
    seen = Whole(batch.lengths, batch.fresh, batch.seed)
    q = queries(case, batch)
    one, other = (run(library, k, case, seen, q, cache, TILE) for k in ("tiles", "group4"))
    assert np.array_equal(one.view(np.uint32), other.view(np.uint32))


class Whole(Batch):
    """Each token's position is that of its sequence's last."""

    @property
    def positions(self) -> np.ndarray:
        return np.repeat(np.array(self.lengths, np.int32) - 1, self.fresh)
