"""Memory of one executable: planned before a byte is allocated, then allocated once.

In: a manifest, the number of cache pages and of threads. Out: a MemoryPlan to show or to compare
with what is left, and a Region from which every buffer is cut. Nothing grows afterwards. Knows
sizes only, not what kernels do with them.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Buffer, Entry, Manifest, Param
from sterna.base.dtype import dtype
from sterna.base.errors import ArtifactError, Error, OutOfMemory
from sterna.base.sizes import evaluate

ALIGNMENT = 64
SLACK = 256  # readable bytes after every buffer: vector loads may run over its end
_HUGE_PAGE = 2 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by purpose. `io` is the inputs and outputs of a step, `scratch` that of all threads."""

    weights: int
    kv_cache: int
    arena: int
    scratch: int
    io: int

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.arena + self.scratch + self.io


def memory_plan(manifest: Manifest, num_pages: int, threads: int) -> MemoryPlan:
    """What an executable will allocate; ArtifactError when the manifest's sizes make no sense."""
    _check_sizes(manifest, num_pages)
    return MemoryPlan(
        weights=sum(padded(packed_bytes(param)) for param in manifest.params),
        kv_cache=padded(num_pages * manifest.kv_cache.page_bytes),
        arena=padded(max((entry.arena_bytes for entry in manifest.launched), default=0)),
        scratch=padded(max((e.scratch_bytes for e in manifest.programs), default=0)) * threads,
        io=sum(padded(size) for size in io_bytes(manifest.launched).values()),
    )


def pages_that_fit(manifest: Manifest, threads: int, memory: int) -> int:
    """The most cache pages with which the plan stays within `memory` bytes; may be 0."""
    rest = memory - memory_plan(manifest, 0, threads).total - ALIGNMENT
    return max(0, rest // manifest.kv_cache.page_bytes)


def check_fits(plan: MemoryPlan, available: int | None) -> None:
    """Raise OutOfMemory, naming the parts, when the plan does not fit what is left."""
    if available is not None and plan.total > available:
        raise OutOfMemory(
            f"the model needs {_show(plan.total)} of memory (weights {_show(plan.weights)}, "
            f"KV cache {_show(plan.kv_cache)}, working memory "
            f"{_show(plan.arena + plan.scratch + plan.io)}) and {_show(available)} is left; "
            "use a smaller context or batch, a quantization with fewer bits, or free memory"
        )


def io_bytes(entries: Iterable[Entry]) -> dict[str, int]:
    """Bytes of each input and output at the largest dims; entries share those of equal name."""
    found: dict[str, int] = {}
    for entry in entries:
        for buffer in (*entry.inputs, *entry.outputs):
            size = math.prod(largest_shape(buffer, entry)) * dtype(buffer.dtype).bytes
            found[buffer.name] = max(size, found.get(buffer.name, 0))
    return found


def largest_shape(buffer: Buffer, entry: Entry) -> tuple[int, ...]:
    """A buffer's shape with every dim at its upper bound."""
    bounds = {dim.name: dim.hi for dim in entry.dims}
    return tuple(evaluate(size, bounds) for size in buffer.shape)


def packed_shape(param: Param) -> tuple[int, ...]:
    """The shape a weight has in memory: [N, W] with rows interleaved, or as in the file.

    [ceil(N / row_tile), W, row_tile], or [streams, ceil(N / row_tile), W, row_tile / streams].
    """
    if param.row_tile == 0 or len(param.shape) != 2:
        return param.shape
    rows, width = param.shape
    blocks, inside = -(-rows // param.row_tile), param.row_tile // param.streams
    return (*((param.streams,) if param.streams > 1 else ()), blocks, width, inside)


def packed_bytes(param: Param) -> int:
    return math.prod(packed_shape(param)) * dtype(param.dtype).bytes


def pack(source: NDArray[Any], param: Param, out: NDArray[Any]) -> None:
    """Copy a weight into memory as its kernels read it. `out` is zeroed, [packed_shape]."""
    if out.ndim == source.ndim:
        out[...] = source
        return
    tile, (rows, width) = param.row_tile, source.shape
    whole, rest = divmod(rows, tile)
    inside = tile // param.streams
    streams = out.reshape(param.streams, -1, width, inside)
    tiles = source[: whole * tile].reshape(whole, param.streams, inside, width)
    streams[:, :whole] = tiles.transpose(1, 0, 3, 2)
    for row in range(rest):
        streams[row // inside, whole, :, row % inside] = source[whole * tile + row]


def padded(size: int) -> int:
    """The room a buffer takes in a region."""
    return -(-size // ALIGNMENT) * ALIGNMENT + SLACK


class Region:
    """One zeroed allocation, cut into aligned pieces that live as long as anyone holds one."""

    def __init__(self, size: int) -> None:
        try:
            if sys.platform == "win32":
                memory = mmap.mmap(-1, size + _HUGE_PAGE)
            else:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                memory = mmap.mmap(-1, size + _HUGE_PAGE, flags=flags)
        except (OSError, OverflowError, ValueError) as error:
            raise OutOfMemory(f"{_show(size)} of memory could not be allocated: {error}") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages: a tenth slower
                memory.madvise(mmap.MADV_HUGEPAGE)
        data = np.frombuffer(memory, dtype=np.uint8)
        self._free = data[-data.ctypes.data % _HUGE_PAGE :]

    def take(self, size: int) -> NDArray[np.uint8]:
        """The next `size` bytes, aligned to 64, with readable slack behind them."""
        room = padded(size)
        if room > len(self._free):
            raise Error(f"a region was planned {room - len(self._free)} bytes too small")
        piece, self._free = self._free[:size], self._free[room:]
        return piece


def _check_sizes(manifest: Manifest, num_pages: int) -> None:
    sizes = [num_pages, *(size for param in manifest.params for size in param.shape)]
    sizes += [param.row_tile for param in manifest.params]
    for entry in manifest.launched:
        sizes += [entry.arena_bytes, entry.scratch_bytes, *(dim.lo for dim in entry.dims)]
        sizes += [dim.hi - dim.lo for dim in entry.dims]
        sizes += [s for b in (*entry.inputs, *entry.outputs) for s in largest_shape(b, entry)]
    if min(sizes) < 0 or manifest.kv_cache.page_bytes <= 0 or manifest.kv_cache.page_size <= 0:
        raise ArtifactError("the library's manifest has a negative size: compile the model again")
    for param in manifest.params:
        if param.streams < 1 or param.row_tile % param.streams:
            raise ArtifactError(
                f"the library's manifest lays tiles of {param.row_tile} rows in {param.streams} "
                "streams, which cannot have equal parts of them: compile the model again"
            )


def _show(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
