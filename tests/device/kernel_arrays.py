"""Arguments for a compiled kernel at any number of tokens.

In: a kernel's loop program. Out: arrays for its parameters, whose index tensors describe a step
of several sequences with cached tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import QUERY_TILE
from sterna.base.dtype import BOOL
from sterna.ir.expr import Var
from sterna.ir.loop import PrimFunc
from sterna.ir.rewrite import free_vars
from sterna.ir.values import whole

Arrays = dict[str, NDArray[Any]]
PAGE_SIZE, NUM_PAGES, CACHED = 16, 24, 21
VOCABULARY = 77
ADAPTERS = 2


def step_index(tokens: int, *, single: bool) -> tuple[Arrays, dict[str, int]]:
    """The inputs of a step of `tokens` tokens; `single`: each a sequence of its own."""
    lengths = [1] * tokens if single else [tokens - tokens // 3, *([tokens // 3] * (tokens > 2))]
    positions, seq_ids, pages, indptr = [], [], [], [0]
    start, size, seq = [], [], []
    for s, length in enumerate(lengths):
        first = CACHED + s
        tiles = range(0, length, QUERY_TILE)
        start += [len(positions) + t for t in tiles]
        size += [min(QUERY_TILE, length - t) for t in tiles]
        seq += [s] * len(tiles)
        positions += range(first, first + length)
        seq_ids += [s] * length
        have = -(-(first + length) // PAGE_SIZE)
        pages += [(7 * (len(pages) + i) + 3) % NUM_PAGES for i in range(have)]
        indptr.append(len(pages))
    seq_indptr = np.cumsum([0, *lengths])
    rows = [tokens - 1]
    named = {
        "positions": positions, "seq_ids": seq_ids, "page_table": pages, "page_indptr": indptr,
        "seq_indptr": seq_indptr, "tile_start": start, "tile_size": size, "tile_seq": seq,
        "logit_rows": rows, "adapter_ids": np.arange(tokens) % (ADAPTERS + 1) - 1,
    }  # fmt: skip
    dims = {"n": tokens, "b": len(lengths), "p": len(pages), "r": 1, "t": len(start), "layer": 1}
    return {k: np.array(v, np.int32) for k, v in named.items()}, dims


def arguments(func: PrimFunc, tokens: int, *, single: bool) -> tuple[Arrays, dict[Var, int]]:
    """Random arrays for a kernel's parameters; the index tensors are those of a step."""
    rng = np.random.default_rng(tokens)
    named, sizes = step_index(tokens, single=single)
    dims = {d: sizes[d.name] for d in func.dims}
    arrays: Arrays = {}
    for p in func.params:
        for var in {v for d in p.shape for v in free_vars(d)} - dims.keys():
            dims[var] = NUM_PAGES  # no address in the kernel depends on it
        shape = tuple(whole(d, dims) for d in p.shape)
        if p.name in named:
            arrays[p.name] = named[p.name]
        elif p.dtype.is_int and p.dtype.bits == 32:
            most = VOCABULARY if p.dtype.kind == "int" else 1 << 32
            arrays[p.name] = rng.integers(0, most, shape).astype(p.dtype.numpy)
        elif p.dtype.is_float:
            arrays[p.name] = (rng.standard_normal(shape) * 0.5).astype(p.dtype.numpy)
        else:
            least = 0 if p.dtype == BOOL or p.dtype.kind == "uint" else -100
            arrays[p.name] = rng.integers(least, 100, shape).astype(p.dtype.numpy)
    return arrays, dims
