"""The artifact of targets whose kernels are launched one by one: manifest, code, constants.

One file, readable with any editor: the mark and length that every artifact has, the manifest as
JSON, then the blobs that the manifest names, in its order and without gaps. Limits of the target
are checked here, before anything is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import msgspec

from sterna.base.artifact import MANIFEST_MARK, Blob, Constant, encode
from sterna.base.dtype import dtype
from sterna.base.errors import CodegenError
from sterna.base.target import Target
from sterna.codegen.cstyle import CStyle, GroupSource, render_groups
from sterna.codegen.renderer import LibraryParts
from sterna.codegen.toolkit import Toolkit
from sterna.ir.loop import PrimFunc

CODE = "code"


@dataclass(frozen=True, slots=True)
class SourceRenderer:
    """A Renderer whose artifact carries source: the driver compiles it when a model is loaded."""

    source_suffix: str
    style: type[CStyle]
    prelude: str
    toolkit: Toolkit | None = field(default=None, kw_only=True)

    def render_kernel(self, func: PrimFunc, target: Target) -> GroupSource:
        """See Renderer."""
        return render_groups(func, self.style, target)

    def library_source(self, parts: LibraryParts) -> str:
        """See Renderer: the prelude and every kernel's text."""
        texts = (k.rendered.text for k in parts.kernels.values())
        return "\n\n".join([self.prelude.strip(), *texts]) + "\n"

    def build_library(self, parts: Sequence[LibraryParts], target: Target) -> bytes:
        """See Renderer; a bundle has one program."""
        (only,) = parts
        return build_bundle(only, self.library_code(only, target), target)

    def library_code(self, parts: LibraryParts, target: Target) -> bytes:
        """What the device's driver compiles or loads."""
        return self.library_source(parts).encode()

    def build_version(self, target: Target) -> str:
        """See Renderer: nothing but a toolkit takes part."""
        return " ".join([self.source_suffix, *(self.toolkit.found() if self.toolkit else ())])


def build_bundle(parts: LibraryParts, code: bytes, target: Target) -> bytes:
    """The artifact's bytes; CodegenError where a kernel or weight exceeds what the target has."""
    check_limits(parts, target)
    arrays = {title: array.astype("<f4") for title, array in parts.constants.items()}
    data = {CODE: code} | {title: array.tobytes() for title, array in arrays.items()}
    manifest = msgspec.structs.replace(
        parts.manifest,
        constants=tuple(
            Constant(name=title, dtype="f32", shape=array.shape) for title, array in arrays.items()
        ),
        blobs=tuple(
            Blob(name=title, size=len(b), sha256=hashlib.sha256(b).hexdigest())
            for title, b in data.items()
        ),
    )
    text = encode(manifest)
    size = len(text).to_bytes(8, "little")
    return b"".join([MANIFEST_MARK, size, text, b"\0", *data.values()])


def check_limits(parts: LibraryParts, target: Target) -> None:
    """CodegenError naming the first limit of the target's row that the library exceeds."""
    for title, kernel in parts.kernels.items():
        for launch in kernel.rendered.launches:
            for what, used, most in (
                ("threads in a group", launch.threads, target.group_threads),
                ("bytes of shared memory", launch.shared_bytes, target.shared_bytes),
                ("buffers", len(launch.buffers), target.most_buffers),
                ("threads of a subgroup", launch.lanes, target.subgroup),
            ):
                if used > most:
                    raise CodegenError(
                        f"kernel {title} wants {used} {what}, and {target.spec} has {most}; "
                        "choose another target, or smaller limits with --overrides"
                    )
    for param in () if target.split_buffers else parts.manifest.params:
        size = prod(param.shape) * dtype(param.dtype).bytes
        if target.most_buffer_bytes and size > target.most_buffer_bytes:
            raise CodegenError(
                f"weight {param.name} has {size} bytes, and {target.spec} binds "
                f"{target.most_buffer_bytes} at most; use a quantization with fewer bits"
            )
