"""The renderer of targets whose library is machine code: kernels and entry points as one C text.

In: loop programs and a manifest. Out: a shared library with the manifest inside, made by the C
compiler of `toolchain`; an entry point is one C function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from sterna.base.artifact import Entry, encode
from sterna.base.errors import CodegenError
from sterna.base.target import Target
from sterna.codegen.c import CSource, name, render
from sterna.codegen.c_entry import KernelCode, constants_source, entry_source
from sterna.codegen.c_math import prelude
from sterna.codegen.embed import manifest_source, pool_source
from sterna.codegen.renderer import LibraryParts, RenderedKernel
from sterna.codegen.toolchain import compile_library, toolchain_version
from sterna.ir.loop import PrimFunc


@dataclass(frozen=True, slots=True)
class LibraryRenderer:
    """The Renderer of machine code."""

    source_suffix: str = ".c"
    toolkit: None = None

    def render_kernel(self, func: PrimFunc, target: Target) -> CSource:
        """See Renderer: a kernel's C text is the same for every machine."""
        return render(func)

    def library_source(self, parts: LibraryParts) -> str:
        """See Renderer: one translation unit."""
        code = {title: _code(k) for title, k in parts.kernels.items()}
        widths = {w for k in code.values() for w in k.source.widths}
        manifest = parts.manifest
        texts = [
            pool_source(),
            prelude(widths),
            manifest_source(encode(manifest), manifest.symbol),
            constants_source(parts.constants),
            *(k.source.text for k in code.values()),
            *(entry_source(e, code, manifest.params, parts.constants) for e in manifest.programs),
        ]
        return "\n".join(texts) + "\n"

    def build_library(self, parts: Sequence[LibraryParts], target: Target) -> bytes:
        """See Renderer. Each program is a translation unit, compiled for its own target."""
        apart = [_apart(part, i, target) for i, part in enumerate(parts)]
        built = compile_library([self.library_source(part) for part in apart], target)
        if not isinstance(built, bytes):
            raise CodegenError("the C compiler was asked for bytes and gave a file")
        return built

    def build_version(self, target: Target) -> str:
        """See Renderer."""
        return toolchain_version(target)


def _apart(parts: LibraryParts, position: int, target: Target) -> LibraryParts:
    """A program whose exported names are its own in a library of several."""
    manifest = replace(parts.manifest, carried=target.carried)
    if position:
        entries = tuple(_named(entry, position) for entry in manifest.entries)
        sampler = manifest.sampler and _named(manifest.sampler, position)
        manifest = replace(manifest, entries=entries, sampler=sampler)
    return dataclasses.replace(parts, manifest=manifest)


def _named(entry: Entry, position: int) -> Entry:
    return replace(entry, symbol=f"{entry.symbol}_{position}")


def _code(kernel: RenderedKernel) -> KernelCode:
    source, func = kernel.rendered, kernel.func
    if not isinstance(source, CSource):
        raise CodegenError(f"kernel {func.name} was rendered for another kind of target")
    params = tuple(name(p.name) for p in func.params)
    return KernelCode(source, params, tuple(name(d.name) for d in func.dims))


RENDERER = LibraryRenderer()
