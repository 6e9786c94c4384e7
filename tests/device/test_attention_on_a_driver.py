"""Attention of work groups on OpenCL's driver, at numbers of rows that no conformance case has.

PoCL 3.1 computes groups of one row and of eight wrongly where kernels are written plainly; what
`codegen.opencl` writes instead, it takes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "codegen"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels"))

from conformance import driver_opencl, target_named
from kernel_library import KernelLibrary
from paged_cache import DIMS, Batch, Case, filled, spec
from run_kernel import RunningKernels
from test_attention import queries, run

from sterna.base.dtype import F16
from sterna.codegen.renderer import RenderedKernel, renderer_of
from sterna.ir.expr import Buffer, Var
from sterna.ir.loop import PrimFunc
from sterna.kernels.attention import attention_tiles
from sterna.kernels.attention_groups import attention_tiles_groups

TILE = 16
CASES = (Case(1, 32, F16), Case(8, 32, F16))


class OnDriver:
    """Kernels as a `KernelLibrary` has them, run by the driver."""

    def __init__(self, funcs: list[PrimFunc]) -> None:
        target = target_named("opencl")
        render = renderer_of(target).render_kernel
        self.funcs = {f.name: f for f in funcs}
        kernels = {f.name: RenderedKernel(f, render(f, target)) for f in funcs}
        self.running = RunningKernels(kernels, target, driver_opencl())

    def run(
        self, name: str, values: Mapping[Buffer, NDArray[Any]], dims: Mapping[Var, int]
    ) -> None:
        arrays = {p.name: array for p, array in values.items()}
        after = self.running.run(name, arrays, {d.name: size for d, size in dims.items()})
        for p, array in values.items():
            array[...] = after[p.name]


@pytest.mark.slow
def test_one_row_of_a_group_and_eight() -> None:
    groups = [attention_tiles_groups(f"group_{c.name}", spec(c), DIMS, TILE, 1) for c in CASES]
    driver = OnDriver(groups)
    host = KernelLibrary([attention_tiles(f"tiles_{c.name}", spec(c), DIMS, TILE) for c in CASES])
    batch = Batch((17, 100, 40), (17, 20, 1), seed=2)
    for case in CASES:
        cache, _ = filled(case, batch)
        q = queries(case, batch)
        expected = run(host, "tiles", case, batch, q, cache, TILE)
        got = run(driver, "group", case, batch, q, cache, 5)  # type: ignore[arg-type]
        assert np.array_equal(got.view(np.uint32), expected.view(np.uint32)), case.name
    driver.running.device.close()
