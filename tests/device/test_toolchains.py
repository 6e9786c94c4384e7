"""Generated kernels are accepted by the makers' own compilers, where one is installed.

NVRTC needs no GPU and no driver: `pip install nvidia-cuda-nvrtc`.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import byref, c_char_p, c_size_t, c_void_p
from pathlib import Path

import pytest
from conformance import cases, rendered, target_named
from run_kernel import NOTHING

from sterna.codegen.renderer import LibraryParts, renderer_of


def nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [f for folder in folders for f in Path(folder).rglob("libnvrtc.so.*")]
    if not found:
        pytest.skip("needs NVRTC: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(min(found, key=lambda f: len(f.name))))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["compute_75", "compute_90"])
def test_nvrtc_makes_ptx(architecture: str) -> None:
    library, target = nvrtc(), target_named("cuda")
    found = cases(target)
    parts = LibraryParts(NOTHING, rendered(found, target), {})
    text = renderer_of(target).library_source(parts)
    program = c_void_p()
    code = c_char_p(text.encode())
    assert library.nvrtcCreateProgram(byref(program), code, b"kernels.cu", 0, None, None) == 0
    options = (c_char_p * 2)(f"-arch={architecture}".encode(), b"-fmad=false")
    failed = library.nvrtcCompileProgram(program, 2, options)
    size = c_size_t()
    library.nvrtcGetProgramLogSize(program, byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert not failed, log.value.decode()[:3000]
    library.nvrtcGetPTXSize(program, byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    entries = ptx.value.decode().count(".visible .entry")
    assert entries == sum(len(k.rendered.launches) for k in rendered(found, target).values())
    assert "fma.rn.f32" in ptx.value.decode()
