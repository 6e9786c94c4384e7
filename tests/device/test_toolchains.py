"""Machine code for GPUs is made without a toolkit, and the makers' own tools accept it.

The compiler is the one that makes CPU libraries. Where ptxas is installed it finishes the PTX and
says what each kernel takes. NVRTC needs no GPU and no driver: `pip install nvidia-cuda-nvrtc`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import struct
from ctypes import byref, c_char_p, c_size_t, c_void_p
from pathlib import Path

import pytest
from conformance import cases, rendered, target_named
from ptxas import spills, spills_told
from run_kernel import NOTHING

from sterna.base.errors import ToolchainError, UsageError
from sterna.codegen import gpu_code, toolchain, toolkit
from sterna.codegen.renderer import LibraryParts, renderer_of


@pytest.fixture(scope="module")
def parts() -> LibraryParts:
    """Every kernel of the conformance matrix, as source."""
    target = target_named("cuda:source")
    return LibraryParts(NOTHING, rendered(cases(target), target), {})


def launches(parts: LibraryParts) -> int:
    return sum(len(k.rendered.launches) for k in parts.kernels.values())


@pytest.fixture(scope="module")
def ptx(parts: LibraryParts, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The PTX of all kernels, made where no tool of CUDA's is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolkit.shutil, "which", lambda name: None)
        target = target_named("cuda")
        code = renderer_of(target).library_code(parts, target)  # type: ignore[attr-defined]
    assert code.endswith(b"\0")
    return str(code[:-1].decode())


@pytest.mark.slow
def test_ptx_without_a_toolkit(parts: LibraryParts, ptx: str) -> None:
    assert ptx.count(".visible .entry") == launches(parts)
    assert ptx.count(".maxntid") == launches(parts)  # so that every group size can be launched
    assert ".version 6.5\n.target sm_75" in ptx  # taken by drivers since CUDA 10.2
    assert "fma.rn.f32" in ptx
    assert ".ftz" not in ptx
    assert ".approx" not in ptx


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90", "sm_120"])
def test_kernels_do_not_spill(ptx: str, architecture: str, tmp_path: Path) -> None:
    found = spills(ptx, architecture, tmp_path)
    spilled = {title for title, size in found.items() if size}
    assert not spilled


def test_a_mistaken_architecture_is_no_reason_to_skip(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sm_57"):
        spills("", "sm_57", tmp_path)


@pytest.mark.slow
def test_finished_code_beside_ptx(parts: LibraryParts) -> None:
    if shutil.which("ptxas") is None or shutil.which("fatbinary") is None:
        pytest.skip("needs ptxas and fatbinary, of CUDA's toolkit")
    target = target_named("cuda:sm_80")
    code = renderer_of(target).library_code(parts, target)  # type: ignore[attr-defined]
    assert code[:4] == struct.pack("<I", 0xBA55ED50)  # the mark of CUDA's own container
    assert b"\x7fELF" in code


@pytest.mark.slow
def test_amd_code_objects_without_a_toolkit(parts: LibraryParts) -> None:
    target = target_named("rocm")
    rows = LibraryParts(NOTHING, rendered(cases(target), target), {})
    code = renderer_of(target).library_code(rows, target)  # type: ignore[attr-defined]
    assert code.startswith(b"__CLANG_OFFLOAD_BUNDLE__")
    (count,) = struct.unpack_from("<Q", code, 24)
    at, found = 32, {}
    for _ in range(count):
        offset, size, length = struct.unpack_from("<QQQ", code, at)
        found[code[at + 24 : at + 24 + length].decode()] = code[offset : offset + size]
        at += 24 + length
    assert found.pop("host-x86_64-unknown-linux-gnu-") == b""
    assert list(found) == [f"hipv4-amdgcn-amd-amdhsa--{a}" for a in target.architectures]
    for binary in found.values():
        assert binary[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", binary, 18) == (224,)  # AMD's GPUs
        # In the notes, in MessagePack: a kernel's name, and what it spills.
        assert binary.count(b".vgpr_spill_count\x00") == launches(rows)
        assert binary.count(b".sgpr_spill_count\x00") == launches(rows)


def test_no_compiler_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_zig_binary", lambda: None)
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    toolchain.find_clang.cache_clear()
    with pytest.raises(ToolchainError, match="no compiler for GPUs was found: `pip install zig"):
        gpu_code.ptx_or_fatbin("", ["sm_75"])
    toolchain.find_clang.cache_clear()


def test_source_that_does_not_compile_is_kept() -> None:
    with pytest.raises(ToolchainError, match=r"ended with code 1: .*error") as caught:
        gpu_code.ptx_or_fatbin("nothing of the kind;", ["sm_75"])
    assert caught.value.source is not None
    assert caught.value.source.read_text() == "nothing of the kind;"
    assert "repro: cd " in str(caught.value)


def nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [f for folder in folders for f in Path(folder).rglob("libnvrtc.so.*")]
    if not found:
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(min(found, key=lambda f: len(f.name))))


def compiled_by_nvrtc(text: str, architecture: str) -> tuple[str, str]:
    """The PTX that NVRTC makes of source, and what it says while it finishes that."""
    library, program = nvrtc(), c_void_p()
    code = c_char_p(text.encode())
    assert library.nvrtcCreateProgram(byref(program), code, b"kernels.cu", 0, None, None) == 0
    words = (f"-arch={architecture}".encode(), b"-fmad=false", b"--ptxas-options=-v")
    options = (c_char_p * len(words))(*words)
    failed = library.nvrtcCompileProgram(program, len(words), options)
    size = c_size_t()
    library.nvrtcGetProgramLogSize(program, byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()[:3000]
    library.nvrtcGetCUBINSize(program, byref(size))
    assert size.value > 0
    library.nvrtcGetPTXSize(program, byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    return ptx.value.decode(), log.value.decode()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_nvrtc_finishes_code(architecture: str, parts: LibraryParts) -> None:
    source = renderer_of(target_named("cuda:source")).library_source(parts)
    ptx, log = compiled_by_nvrtc(source, architecture)
    assert ptx.count(".visible .entry") == launches(parts)
    assert "fma.rn.f32" in ptx
    assert not any(spills_told(ptx, log).values())
