"""The smallest kernels that test a device: code for a target, and how it is launched."""

from __future__ import annotations

from run_kernel import NOTHING

from sterna.base.artifact import Phase
from sterna.base.dtype import F16, F32, U8
from sterna.base.target import Target, parse_target
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.ir.expr import Buffer, Var, wrap
from sterna.ir.loop import For, ForKind, PrimFunc, store
from sterna.nn.trace import Trace
from sterna.passes.lower import lower
from sterna.schedule.choose import plan_of, planned


def adding_kernel(spec: str) -> tuple[bytes, Phase]:
    """`add` adds 1 to each of the first `n` bytes of x."""
    target = parse_target(spec)
    n, i = Var("n"), Var("i", lo=0)
    x = Buffer("x", U8, (n,))
    body = For(i, n, store(x, i, x[i] + wrap(1, U8)), ForKind.PARALLEL)
    return _library(PrimFunc("add", (x,), (n,), body), target)


def multiplying_kernel() -> tuple[bytes, Phase]:
    """`multiply` makes a product with Vulkan's matrices."""
    target, n = parse_target("vulkan:matrix"), Var("n", lo=1, hi=16)
    trace = Trace("multiply")
    product = trace.emit(
        "unit_matmul", trace.param("x", (n, 16), F32), trace.weight("w", (16, 16), F16),
        layout="NK", operands="f16",
    )  # fmt: skip
    group = lower(trace.function(product), {}).group
    return _library(planned(group, plan_of(group, target))[1], target)


def _library(func: PrimFunc, target: Target) -> tuple[bytes, Phase]:
    renderer = renderer_of(target)
    assert isinstance(renderer, SourceRenderer)
    kernel = RenderedKernel(func, renderer.render_kernel(func, target))
    code = renderer.library_code(LibraryParts(NOTHING, {func.name: kernel}, {}), target)
    return code, kernel.rendered.launches[0]
