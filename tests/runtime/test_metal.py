"""Metal as a device, over objects that run kernels on the CPU and can fail."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

from adding_kernel import adding_kernel
from fake_metal import FakeMetal

from sterna.base.errors import (
    ArtifactError,
    DeviceError,
    Error,
    OutOfMemory,
    ToolchainError,
    Unavailable,
)
from sterna.base.target import parse_target
from sterna.codegen.renderer import renderer_of
from sterna.runtime import metal
from sterna.runtime.metal import MetalDevice


def opened(*fails: str) -> MetalDevice:
    runtime: Any = FakeMetal(*fails)
    return MetalDevice(runtime, c_void_p(1))


def add_twice(device: MetalDevice) -> np.ndarray[Any, Any]:
    code, phase = adding_kernel("metal")
    data = np.arange(1024, dtype=np.uint32).view(np.uint8)
    buffer = device.allocate(data.nbytes)
    device.write(buffer, data)
    device.copy(buffer, 0, 2048, 64)
    function = device.compile(code, [phase])["add"]
    launch = device.prepare(function, phase, [device.view(buffer, 1024, 1000)], ["n"])
    for _ in range(2):
        device.run([(launch, 16, [999]), (launch, 1, [5])])
    out = np.empty_like(data)
    device.read(buffer, out)
    return out


def expected() -> np.ndarray[Any, Any]:
    out = np.arange(1024, dtype=np.uint32).view(np.uint8).copy()
    out[2048:2112] = out[:64]
    out[1024 : 1024 + 999] += 2
    out[1024 : 1024 + 5] += 2
    return out


def test_memory_and_kernels() -> None:
    device = opened()
    np.testing.assert_array_equal(add_twice(device), expected())
    runtime: Any = device._runtime
    assert runtime.options == ["fast math False"]
    device.close()
    device.close()
    made = [at for at, kept in runtime.references.items() if kept > 0]
    kinds = {type(runtime.objects[at]).__name__ for at in made}
    assert kinds <= {"str", "Commands", "tuple"}  # what the pool would have released


def write_xcode(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """An `xcrun` on the PATH; of what it is called with, its script has the last three words."""
    script = folder / "xcrun"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


XCODE = """case "$*" in
"-sdk macosx -find metal") echo /Xcode/metal ;;
"-sdk macosx metal -O2 -fno-fast-math "*"kernels.metal -o kernels.metallib")
    { echo MTLB; cat kernels.metal; } > kernels.metallib ;;
*) exit 1 ;;
esac"""


@pytest.mark.parametrize("refused", [False, True])
def test_finished_code_is_taken_where_a_library_has_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refused: bool,
) -> None:
    """A system that refuses it compiles the source beside it."""
    source, _ = adding_kernel("metal")
    write_xcode(tmp_path, monkeypatch, XCODE)
    assert adding_kernel("metal")[0] == source + b"\0MTLB\n" + source
    device = opened(*(["newLibraryWithData:error:"] if refused else []))
    np.testing.assert_array_equal(add_twice(device), expected())
    runtime: Any = device._runtime
    assert runtime.options == (["fast math False"] if refused else ["finished code"])
    why = "refused the finished code, so it compiles the source: an error of Metal's"
    assert (why in caplog.text) == refused
    device.close()


def test_xcode_without_its_metal_compiler_takes_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, renderer = adding_kernel("metal")[0], renderer_of(parse_target("metal"))
    write_xcode(tmp_path, monkeypatch, "exit 72")
    assert adding_kernel("metal")[0] == before
    assert renderer.toolkit is not None
    assert renderer.toolkit.report().startswith("no metal compiler of Xcode's here: libraries hold")


def test_what_xcode_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'case "$*" in *-find*) exit 0 ;; esac; echo "kernels.metal:1: no such type" >&2; exit 1'
    write_xcode(tmp_path, monkeypatch, body)
    with pytest.raises(ToolchainError, match="no such type"):
        adding_kernel("metal")


@pytest.mark.parametrize(
    ("fails", "error", "told"),
    [
        ("newCommandQueue", DeviceError, "failed in making a queue on Imagined M9"),
        ("newBufferWithLength:options:", OutOfMemory, "no memory left for a buffer of 4096 bytes"),
        ("newLibraryWithSource:options:error:", ArtifactError, "refused the kernels: an error of"),
        ("newFunctionWithName:", ArtifactError, "the library has no kernel 'add'"),
        (
            "newComputePipelineStateWithFunction:error:",
            ArtifactError,
            "refused kernel add: an error of Metal's",
        ),
        ("few threads", DeviceError, "wants 64 threads in a group, and Imagined M9 has 32 for it"),
        ("a step", DeviceError, "failed in a step on Imagined M9: the GPU was taken away"),
    ],
)
def test_what_fails_is_told(fails: str, error: type[Error], told: str) -> None:
    with pytest.raises(error, match=told):
        add_twice(opened(fails))


def test_no_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal.sys, "platform", "linux")
    with pytest.raises(Unavailable, match="Metal is on Apple's systems only"):
        metal.open_device()
    (report,) = metal.reports()
    assert not report.present

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(metal.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match="Metal is not on this machine"):
        metal.open_device()


def test_devices_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = FakeMetal()
    array = c_void_p(runtime._new([1, 1]))
    monkeypatch.setattr(metal, "_found", lambda: (runtime, metal.listed(runtime, array)))
    first, second = metal.reports()
    assert (first.name, second.name) == ("metal", "metal:1")
    assert first.faster
    assert "Imagined M9, 2.0 GiB memory" in first.detail
    assert metal.available_memory(1) == 1 << 31
    with pytest.raises(Unavailable, match="device 2 was asked for, and 0 to 1 are here"):
        metal.open_device(2)
    monkeypatch.setattr(metal, "_found", lambda: (runtime, []))
    with pytest.raises(Unavailable, match="offers no GPU to Metal"):
        metal.open_device()


def test_a_library_for_newer_gpus() -> None:
    runtime: Any = FakeMetal()
    metal.check_features(runtime, c_void_p(1), ["apple7"])
    runtime = FakeMetal("supportsFamily:")
    metal.check_features(runtime, c_void_p(1), [])
    with pytest.raises(Unavailable, match="family apple7, which Imagined M9 is not; compile"):
        metal.check_features(runtime, c_void_p(1), ["apple7"])
