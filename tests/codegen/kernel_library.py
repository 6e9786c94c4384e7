"""Test harness: kernels rendered, compiled into one library and run on numpy arrays."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.target import Target, host_target
from sterna.codegen.c import CSource, render
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import pool_source
from sterna.codegen.toolchain import compile_library
from sterna.ir.expr import Buffer, Var
from sterna.ir.loop import PrimFunc

Array = NDArray[Any]
SANITIZE = "STERNA_TEST_SANITIZE"  # names of sanitizers to build kernels with
SLACK = 64  # elements behind each argument that may be read


def aligned(size: int) -> NDArray[np.uint8]:
    """Zeroed bytes at a multiple of 64."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def entry(source: CSource, func: PrimFunc) -> str:
    """An exported function that runs all phases of a kernel."""
    args = [f"buffers[{i}]" for i in range(len(func.params))]
    args += [f"dims[{i}]" for i in range(len(func.dims))]
    head = f"EXPORT void run_{source.name}(Pool *pool, void **buffers, const i64 *dims)"
    lines = [f"{head};", f"{head} {{", "    (void)buffers, (void)dims;"]
    lines += [f"    const i64 {d.name} = dims[{i}];" for i, d in enumerate(func.dims)]
    lines += [f"    (void){d.name};" for d in func.dims]
    lines.append(f"    struct {source.name}_args args = {{{', '.join(['pool', *args])}}};")
    for phase, items in zip(source.phases, source.counts, strict=True):
        lines.append(f"    parallel(pool, {phase}, &args, {items}, 1);")
    return "\n".join([*lines, "}"])


class KernelLibrary:
    """Compiled kernels by name. One thread; scratch memory starts as NaNs."""

    def __init__(
        self,
        funcs: Sequence[PrimFunc],
        target: Target | None = None,
        cc: str | None = None,
    ) -> None:
        self.funcs = {f.name: f for f in funcs}
        self.sources = {f.name: render(f) for f in funcs}
        widths = {w for s in self.sources.values() for w in s.widths}
        parts = [pool_source(), prelude(widths)]
        for f in funcs:
            parts += [self.sources[f.name].text, entry(self.sources[f.name], f)]
        self.text = "\n".join(parts)
        target = target or host_target()
        sanitize = os.environ.get(SANITIZE, "").split()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"kernels{target.suffix}"
            compile_library(self.text, target, path, cc=cc, sanitize=sanitize)
            self.library = ctypes.CDLL(str(path))
        self.scratch_bytes = max((s.scratch_bytes for s in self.sources.values()), default=0)

    def run(
        self, name: str, arrays: Mapping[Buffer, Array], dims: Mapping[Var, int] | None = None
    ) -> None:
        """Run a kernel; `arrays` are read, and changed in place."""
        func = self.funcs[name]
        held = []
        for buffer in func.params:
            array = arrays[buffer]
            assert array.dtype == buffer.dtype.numpy
            memory = aligned((array.size + SLACK) * array.itemsize)
            memory[:] = 0xFF  # NaNs and -1
            memory[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            held.append(memory)
        pool, scratch = aligned(4096), aligned(self.scratch_bytes + 64)
        scratch[:] = 0xFF
        pool[:4].view(np.int32)[0] = 1
        pool[24:32].view(np.int64)[0] = scratch.ctypes.data
        pool[32:40].view(np.int64)[0] = self.scratch_bytes
        pointers = (ctypes.c_void_p * max(1, len(held)))(*(m.ctypes.data for m in held))
        values = [(dims or {})[d] for d in func.dims]
        numbers = (ctypes.c_int64 * max(1, len(values)))(*values)
        run = getattr(self.library, f"run_{self.sources[name].name}")
        run(ctypes.c_void_p(pool.ctypes.data), pointers, numbers)
        for buffer, memory in zip(func.params, held, strict=True):
            array = arrays[buffer]
            tail = memory[array.nbytes :]
            assert (tail == 0xFF).all(), f"{name} wrote behind {buffer.name}"
            array[...] = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
