"""A Device that runs kernels' own source on the CPU, compiled as C++ over simt.h.

In: an artifact's source for a language of C's family. Out: a Device for `load_on` and for single
kernels. Needs g++; what the source means beyond the shim's header is what g++ makes of it.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sterna.base.artifact import Phase
from sterna.runtime.work_groups import Limits

HERE = Path(__file__).parent
# No contraction: as the renderers ask of the real compilers.
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-w", "-march=native")


def compiled(text: str, lanes: int = 32) -> ctypes.CDLL:
    """C++ as a library of this process, with subgroups of `lanes` threads."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to run kernels on the CPU")
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "kernels.so"
        given = [f"-I{HERE}", f"-DSIMT_SUBGROUP={lanes}", "-x", "c++", "-"]
        line = ["g++", *FLAGS, *given, "-o", str(library)]
        done = subprocess.run(line, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
        return ctypes.CDLL(str(library))


def source_of(code: bytes, phases: Sequence[Phase]) -> str:
    """The C++ of kernels: attributes in double brackets gone, an entry for each function."""
    text = re.sub(r"\[\[.*?\]\]", "", code.decode())
    entries = [
        f'extern "C" const char *run_{p.symbol}(unsigned groups, void **buffers, int *dims) {{'
        f" return simt::launch({p.symbol}, groups, {p.threads}, simt::Launch{{buffers, dims}}); }}"
        for p in phases
    ]
    return "\n".join(['#include "languages.h"', text, *entries])


class SimtDevice:
    """See sterna.runtime.work_groups.Device."""

    name = "simt"
    limits = Limits(
        memory=None, buffer_bytes=1 << 40, group_threads=1024, shared_bytes=65536, buffers=64,
        lanes=32,
    )  # fmt: skip

    def compile(self, code: bytes, phases: Sequence[Phase]) -> dict[str, Any]:
        loaded = compiled(source_of(code, phases), self.limits.lanes)
        functions = {p.symbol: loaded[f"run_{p.symbol}"] for p in phases}
        for function in functions.values():
            function.restype = ctypes.c_char_p
        return functions

    def allocate(self, size: int) -> NDArray[np.uint8]:
        room = np.full(size + 64, 0xFF, np.uint8)
        return room[-room.ctypes.data % 64 :][:size]

    def view(self, buffer: NDArray[np.uint8], offset: int, size: int) -> NDArray[np.uint8]:
        assert offset + size <= len(buffer)
        return buffer[offset : offset + size]

    def write(self, buffer: NDArray[np.uint8], data: NDArray[Any], offset: int = 0) -> None:
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        buffer[offset : offset + len(flat)] = flat

    def read(self, buffer: NDArray[np.uint8], out: NDArray[Any], offset: int = 0) -> None:
        out.reshape(-1).view(np.uint8)[:] = buffer[offset : offset + out.nbytes]

    def copy(self, buffer: NDArray[np.uint8], source: int, destination: int, size: int) -> None:
        buffer[destination : destination + size] = buffer[source : source + size]

    def prepare(
        self,
        function: Any,
        phase: Phase,
        buffers: Sequence[NDArray[np.uint8]],
        dims: Sequence[str],
    ) -> Any:
        pointers = (ctypes.c_void_p * len(buffers))(*(b.ctypes.data for b in buffers))
        return function, pointers, buffers

    def run(self, launches: Sequence[tuple[Any, int, Sequence[int]]]) -> None:
        for (function, pointers, _), groups, values in launches:
            dims = (ctypes.c_int * len(values))(*values)
            error = function(ctypes.c_uint(groups), pointers, dims)
            assert error is None, error.decode()

    def close(self) -> None:
        """Nothing is held."""
