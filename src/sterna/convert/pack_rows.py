"""One stored weight out of its sources, some rows at a time.

In: the tensors a weight is stacked from, on disk. Out: its packed tensors, and the error that a
reader of the folder will find in them. Rows are quantized on their own, so beside the result no
more than a few blocks are ever in memory, however large the tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import F32
from sterna.checkpoint.mlc import encode_bf16
from sterna.convert.stored import Parts, StoredTensor
from sterna.convert.tensors import Planned
from sterna.models.params import StoredWeight
from sterna.quantize.pack import quantize
from sterna.quantize.report import ErrorSum, measure

Array = NDArray[Any]

BLOCK_BYTES = 8 << 20  # of a source, read at a time
MAX_THREADS = 4  # beyond that the memory's bandwidth is the limit


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of one source tensor; `at` is where they lie in the stored weight."""

    tensor: StoredTensor
    first: int
    last: int
    at: int


def pack_rows(
    planned: Planned, *, f32_as_bf16: bool, ready: Mapping[str, Parts]
) -> tuple[dict[str, Array], ErrorSum]:
    """Quantize a weight; the tensors come by part, as in `StoredWeight.parts`.

    `f32_as_bf16` says that the folder will hold float32 tensors cut to bfloat16; `ready` holds the
    parts of weights, by the checkpoint's names, that were quantized already. Raises UnsafeFile
    for NaN and infinite weights, UsageError for weights that the scheme's dtype cannot hold.
    """
    weight = planned.weight
    out = {part: np.empty(shape, dtype.numpy) for part, (shape, dtype) in weight.parts.items()}

    def pack(block: _Block) -> ErrorSum:
        index = _index(weight, slice(block.at, block.at + block.last - block.first))
        if block.tensor.scheme is not None and block.tensor.scheme == weight.scheme:
            for key, stored in block.tensor.read(block.first, block.last).items():
                out[key][... if key == "q_group" else index] = stored
            return ErrorSum(count=(block.last - block.first) * prod(block.tensor.shape[1:]))
        values = block.tensor.values(block.first, block.last)
        source = f"{block.tensor.name} in {block.tensor.path}"
        made = ready.get(block.tensor.name)
        if made is None:
            packed = quantize(values, weight.scheme, name=source)
        else:
            rows = _index(weight, slice(block.first, block.last))
            packed = {key: np.ascontiguousarray(part[rows]) for key, part in made.items()}
        if f32_as_bf16 and not weight.scheme.is_quantized and weight.scheme.compute == F32:
            packed = {"weight": _cut(packed["weight"])}
        for part, array in zip(out.values(), packed.values(), strict=True):
            part[index] = array
        return measure(values, packed, weight.scheme)

    total = ErrorSum()
    for error in _in_order(pack, list(_blocks(planned))):
        total.merge(error)
    return out, total


def _in_order(pack: Callable[[_Block], ErrorSum], blocks: list[_Block]) -> Iterator[ErrorSum]:
    """Results in the order of the blocks, whichever thread was quicker; so sums repeat exactly."""
    if len(blocks) == 1:
        yield pack(blocks[0])
        return
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        yield from pool.map(pack, blocks)
    finally:
        pool.shutdown(cancel_futures=True)


def _blocks(planned: Planned) -> Iterator[_Block]:
    start = 0
    for tensor in planned.tensors:
        rows = tensor.shape[0]
        step = rows if tensor.whole else max(1, BLOCK_BYTES * rows // max(1, tensor.nbytes))
        for first in range(0, rows, step):
            yield _Block(tensor, first, min(first + step, rows), start + first)
        start += rows


def _index(weight: StoredWeight, rows: slice) -> tuple[slice, ...]:
    """Where the packed rows of a weight lie: the last axis if it is stored transposed."""
    transposed = weight.scheme.layout == "KN" and len(weight.shape) == 2
    return (slice(None), rows) if transposed and weight.scheme.is_quantized else (rows,)


def _cut(values: Array) -> Array:
    """float32 as it comes back from a file that holds bfloat16."""
    return (encode_bf16(np.ascontiguousarray(values)).astype("<u4") << np.uint32(16)).view("<f4")
