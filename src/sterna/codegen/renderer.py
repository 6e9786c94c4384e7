"""What the compiler asks of a renderer, and how a target's row leads to one.

The row names a module, and the module's RENDERER offers the functions below; nobody asks for one
by its own name. In: loop programs, then a whole library's kernels with its manifest. Out: source
text, then the bytes of the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import Manifest, Phase
from sterna.base.target import Target
from sterna.codegen.toolkit import Toolkit
from sterna.ir.loop import PrimFunc


class Rendered(Protocol):
    """A kernel as source."""

    @property
    def text(self) -> str: ...

    @property
    def items(self) -> tuple[str, ...]:
        """Work items of each phase, as a formula over the dims."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Memory wanted for each thread of a CPU."""
        ...

    @property
    def dims(self) -> tuple[str, ...]:
        """The dims whose values a launch brings, in order."""
        ...

    @property
    def launches(self) -> tuple[Phase, ...]:
        """How a runtime launches the phases one by one; empty where an entry is one function."""
        ...


@dataclass(frozen=True, slots=True)
class RenderedKernel:
    """A kernel's loop program and its source."""

    func: PrimFunc
    rendered: Rendered


@dataclass(frozen=True, slots=True)
class LibraryParts:
    """All that an artifact is made of."""

    manifest: Manifest
    kernels: Mapping[str, RenderedKernel]
    constants: Mapping[str, NDArray[np.float32]]


class Renderer(Protocol):
    """What every renderer can do."""

    @property
    def source_suffix(self) -> str:
        """Of a file with the library's source."""
        ...

    @property
    def toolkit(self) -> Toolkit | None:
        """A maker's tools that add to a library where they are installed."""
        ...

    def render_kernel(self, func: PrimFunc, target: Target) -> Rendered:
        """Source of one kernel; CodegenError for what the target cannot express."""
        ...

    def library_source(self, parts: LibraryParts) -> str:
        """The whole library as text, for looking at and for building."""
        ...

    def build_library(self, parts: Sequence[LibraryParts], target: Target) -> bytes:
        """The artifact's bytes, with a program for each of `targets_of(target)`.

        Raises ToolchainError where an outside compiler fails.
        """
        ...

    def build_version(self, target: Target) -> str:
        """All of the outside toolchain that shapes the bytes, for cache keys."""
        ...


def renderer_of(target: Target) -> Renderer:
    """The renderer that serves a target."""
    return cast(Renderer, import_module(f"sterna.codegen.{target.renderer}").RENDERER)
