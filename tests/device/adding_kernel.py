"""The smallest kernel that tests a device: code for a target, and how it is launched."""

from __future__ import annotations

from run_kernel import NOTHING

from sterna.base.artifact import Phase
from sterna.base.dtype import U8
from sterna.base.target import parse_target
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.renderer import LibraryParts, RenderedKernel, renderer_of
from sterna.ir.expr import Buffer, Var, wrap
from sterna.ir.loop import For, ForKind, PrimFunc, store


def adding_kernel(spec: str) -> tuple[bytes, Phase]:
    """`add` adds 1 to each of the first `n` bytes of x."""
    target = parse_target(spec)
    n, i = Var("n"), Var("i", lo=0)
    x = Buffer("x", U8, (n,))
    body = For(i, n, store(x, i, x[i] + wrap(1, U8)), ForKind.PARALLEL)
    func = PrimFunc("add", (x,), (n,), body)
    renderer = renderer_of(target)
    assert isinstance(renderer, SourceRenderer)
    kernel = RenderedKernel(func, renderer.render_kernel(func, target))
    code = renderer.library_code(LibraryParts(NOTHING, {"add": kernel}, {}), target)
    return code, kernel.rendered.launches[0]
