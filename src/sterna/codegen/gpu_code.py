"""Machine code for GPUs, from the clang that makes CPU libraries: no toolkit, no GPU.

In: the text that a renderer wrote, and the architectures that a target's row names. Out: PTX, which
the driver finishes when a model is loaded, or a bundle of AMD code objects in the form that HIP's
loader reads. Where CUDA's own `ptxas` and `fatbinary` are installed, finished code lies beside the
PTX. A target without architectures keeps its source, which the device's machine compiles.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sterna.base.target import Target
from sterna.codegen.bundle import SourceRenderer
from sterna.codegen.renderer import LibraryParts
from sterna.codegen.toolchain import Clang, find_clang, run_tool
from sterna.codegen.toolkit import Toolkit

# As the CPU's: nothing that reorders or contracts. `bare` says that no vendor's header is there.
_MEANING = (
    "-O3", "-ffp-contract=off", "-fno-math-errno", "-g0", "-DSTERNA_BARE",
    "-Wno-unknown-cuda-version",
)  # fmt: skip
PTX_TOOLS = Toolkit(
    "ptxas and fatbinary",
    ("ptxas", "fatbinary"),
    adds="libraries hold finished code beside PTX",
    without="libraries hold PTX, which the driver finishes when a model is loaded",
)
_MARK = b"__CLANG_OFFLOAD_BUNDLE__"
_PAGE = 4096  # code objects begin at multiples of it
_OLDEST_PTX = {"": "65", "sm_80": "70", "sm_86": "71", "sm_89": "78", "sm_90": "78", "sm_90a": "80",
               "sm_100": "86", "sm_120": "87"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineCodeRenderer(SourceRenderer):
    """A Renderer whose artifact carries code for the architectures of the target's row."""

    make: Callable[[str, Sequence[str]], bytes]

    def library_code(self, parts: LibraryParts, target: Target) -> bytes:
        """Machine code, or the source where the row names no architecture."""
        source = self.library_source(parts)
        return self.make(source, target.architectures) if target.architectures else source.encode()

    def build_version(self, target: Target) -> str:
        """See Renderer."""
        if not target.architectures:
            return self.source_suffix
        own = SourceRenderer.build_version(self, target)
        return " ".join([own, find_clang().version, *_MEANING])


def ptx_or_fatbin(source: str, architectures: Sequence[str]) -> bytes:
    """PTX for the first architecture and all later ones, with finished code where ptxas is here."""
    (architecture,) = architectures
    with tempfile.TemporaryDirectory(prefix="sterna-gpu-") as name:
        folder = Path(name)
        ptx = _ptx(source, architecture, folder)
        tools = PTX_TOOLS.found()
        if not tools:
            return ptx + b"\0"
        ptxas, fatbinary = tools
        run_tool([ptxas, f"-arch={architecture}", "kernels.ptx", "-o", "kernels.cubin"], folder)
        number = architecture.removeprefix("sm_")
        images = [
            f"--image3=kind=elf,sm={number},file=kernels.cubin",
            f"--image3=kind=ptx,sm={number},file=kernels.ptx",
        ]
        run_tool([fatbinary, "-64", "--create=kernels.fatbin", *images], folder)
        return (folder / "kernels.fatbin").read_bytes()


def _ptx(source: str, architecture: str, folder: Path) -> bytes:
    (folder / "kernels.cu").write_text(source, encoding="utf-8")
    version = _OLDEST_PTX.get(architecture, _OLDEST_PTX[""])
    language = ["-x", "cuda", "--cuda-device-only", "-nocudainc", "-nocudalib"]
    chosen = [f"--cuda-gpu-arch={architecture}", f"--cuda-feature=+ptx{version}"]
    line = [*find_clang().command, *language, *chosen, *_MEANING, "-S"]
    run_tool([*line, "kernels.cu", "-o", "kernels.ptx"], folder)
    return (folder / "kernels.ptx").read_bytes()


def offload_bundle(source: str, architectures: Sequence[str]) -> bytes:
    """Code objects of all architectures, bundled as clang bundles them.

    Format: https://clang.llvm.org/docs/ClangOffloadBundler.html, the uncompressed binary form.
    """
    clang = find_clang()
    with tempfile.TemporaryDirectory(prefix="sterna-gpu-") as name:
        folder = Path(name)
        (folder / "kernels.hip").write_text(source, encoding="utf-8")
        with ThreadPoolExecutor() as threads:
            objects = list(
                threads.map(lambda each: _code_object(clang, each, folder), architectures)
            )
    titles = [b"host-x86_64-unknown-linux-gnu-"]
    titles += [f"hipv4-amdgcn-amd-amdhsa--{each}".encode() for each in architectures]
    parts = [b"", *objects]
    size = len(_MARK) + 8 + sum(24 + len(title) for title in titles)
    header = _MARK + struct.pack("<Q", len(parts))
    body, at = b"", -(-size // _PAGE) * _PAGE
    first = at
    for title, part in zip(titles, parts, strict=True):
        header += struct.pack("<QQQ", at, len(part), len(title)) + title
        padded = part.ljust(-(-len(part) // _PAGE) * _PAGE, b"\0")
        body, at = body + padded, at + len(padded)
    return header.ljust(first, b"\0") + body


def _code_object(clang: Clang, architecture: str, folder: Path) -> bytes:
    """Compiled, assembled and linked: clang's own driver would call a linker by its name."""
    stem = f"kernels-{architecture}"
    language = ["-x", "hip", "--offload-device-only", f"--offload-arch={architecture}"]
    bare = ["--no-gpu-bundle-output", "-nogpuinc", "-nogpulib"]
    run_tool(
        [*clang.command, *language, *bare, *_MEANING, "-S", "kernels.hip", "-o", f"{stem}.s"],
        folder,
    )
    machine = ["--target=amdgcn-amd-amdhsa", f"-mcpu={architecture}"]
    run_tool([*clang.command, *machine, "-c", f"{stem}.s", "-o", f"{stem}.o"], folder)
    run_tool([*clang.linker, "-shared", f"{stem}.o", "-o", f"{stem}.hsaco"], folder)
    return (folder / f"{stem}.hsaco").read_bytes()
