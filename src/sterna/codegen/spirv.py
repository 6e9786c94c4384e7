"""The renderer of Vulkan: what a library has of the modules that `spirv_kernels` writes.

Kernels in which a matrix unit multiplies are written by `spirv_matrix`, those for devices that
store no small numbers by `WordSpirv`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sterna.base.target import Target
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.cstyle import GroupSource, render_groups
from sterna.codegen.fragments import has_matrix
from sterna.codegen.renderer import LibraryParts
from sterna.codegen.spirv_assembly import assemble
from sterna.codegen.spirv_kernels import MODULE, Spirv, WordSpirv
from sterna.codegen.spirv_matrix import MatrixSpirv
from sterna.ir.loop import PrimFunc


@dataclass(frozen=True, slots=True)
class SpirvRenderer(SourceRenderer):
    """A Renderer whose artifact carries modules in binary form."""

    def render_kernel(self, func: PrimFunc, target: Target) -> GroupSource:
        """See Renderer."""
        style = Spirv if target.small_numbers else WordSpirv
        return render_groups(func, MatrixSpirv if has_matrix(func.body) else style, target)

    def library_code(self, parts: LibraryParts, target: Target) -> bytes:
        """Every module behind its size in bytes, as a little-endian u32."""
        texts = self.library_source(parts).split(MODULE)[1:]
        modules = [assemble(text.split("\n", 1)[1]) for text in texts]
        return b"".join(struct.pack("<I", len(module)) + module for module in modules)


RENDERER = SpirvRenderer(".spvasm", Spirv, "")
