"""CUDA and ROCm as devices, over drivers that run kernels on the CPU and can fail.

Where a real driver is here, `tests/device` runs the same kernels on it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "device"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))

from adding_kernel import adding_kernel
from fake_drivers import FakeCompiler, FakeCuda, FakeDriver, FakeHip

from sterna.base.errors import ArtifactError, DeviceError, Error, OutOfMemory, Unavailable
from sterna.runtime import cuda, hip
from sterna.runtime.streams import StreamDevice, is_source

MAKERS = ("cuda", "rocm")


def a_driver(maker: str, **fails: int) -> FakeDriver:
    return FakeCuda(**fails) if maker == "cuda" else FakeHip(**fails)


def opened(maker: str, monkeypatch: pytest.MonkeyPatch, **fails: int) -> StreamDevice:
    """A device of the maker, whose own compiler is here."""
    nvrtc, hiprtc = FakeCompiler("nvrtc", "CUBIN"), FakeCompiler("hiprtc", "Code")
    monkeypatch.setattr(cuda, "_nvrtc", lambda: nvrtc)
    monkeypatch.setattr(hip, "_first", lambda names: hiprtc)
    driver: Any = a_driver(maker, **fails)
    if maker == "cuda":
        return cuda.CudaDevice(cuda.checked(driver), 0)
    return hip.HipDevice(hip.checked(driver), 0)


@pytest.mark.parametrize("maker", MAKERS)
def test_memory_and_kernels(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened(maker, monkeypatch)
    driver: FakeDriver = device._driver
    code, phase = adding_kernel(f"{maker}:source")
    size = (9 << 20) + 4  # more than is staged at once
    data = np.arange(size, dtype=np.uint32).view(np.uint8)[:size].copy()
    buffer = device.allocate(size)
    device.write(buffer, data)
    device.write(buffer, data[:8], 100)
    device.copy(buffer, 0, 1 << 20, 4096)
    data[100:108] = data[:8]
    data[1 << 20 : (1 << 20) + 4096] = data[:4096]
    function = device.compile(code, [phase])["add"]
    launch = device.prepare(function, phase, [device.view(buffer, 1024, 1000)], ["n"])
    step, other = [(launch, 16, [999])], [(launch, 1, [5])]
    for _ in range(4):
        device.run(step)
        device.run(other)
    data[1024 : 1024 + 999] += 4
    data[1024 : 1024 + 5] += 4
    out = np.empty_like(data)
    device.read(buffer, out)
    np.testing.assert_array_equal(out, data)
    part = np.empty(16, np.uint8)
    device.read(buffer, part, 1020)
    np.testing.assert_array_equal(part, data[1020:1036])
    assert driver.calls.count("begin_capture") == 2  # each size once, when it came again
    assert driver.calls.count("launch") == 4
    assert driver.calls.count("launch_graph") == 6
    device.close()
    device.close()
    assert not driver.held
    assert getattr(driver, "retained", 0) == 0


@pytest.mark.parametrize("maker", MAKERS)
def test_graphs_of_old_sizes_are_given_back(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened(maker, monkeypatch)
    driver: FakeDriver = device._driver
    code, phase = adding_kernel(f"{maker}:source")
    function = device.compile(code, [phase])["add"]
    launch = device.prepare(function, phase, [device.allocate(64)], ["n"])
    steps = [[(launch, 1, [n])] for n in range(1, 41)]
    for step in steps:
        device.run(step)
        device.run(step)
    made = driver.calls.count("instantiate")
    assert made == len(steps)
    assert driver.calls.count("free_executable") == made - 16
    device.close()
    assert driver.calls.count("free_executable") == made


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    ("call", "code", "error", "told"),
    [
        ("allocate", 2, OutOfMemory, "has no memory left for a buffer of 1024 bytes"),
        ("copy", 1, DeviceError, "failed in writing a buffer on Imagined GPU: what .* calls it"),
        ("launch", 719, DeviceError, "failed in launching a kernel"),
        ("synchronize", 719, DeviceError, "failed in a step"),
        ("load_module", 209, ArtifactError, "has no code for Imagined GPU; compile the model for"),
        ("load_module", 218, ArtifactError, "Imagined GPU refused the kernels"),
        ("load_module", 2, OutOfMemory, "loading the kernels"),
        ("instantiate", 1, DeviceError, "failed in recording a step"),
        ("allocate_host", 2, OutOfMemory, "memory that both sides reach"),
    ],
)
def test_what_fails_is_told(
    maker: str, call: str, code: int, error: type[Error], told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with pytest.raises(error, match=told):
        add_twice(maker, monkeypatch, **{call: code})


def add_twice(maker: str, monkeypatch: pytest.MonkeyPatch, **fails: int) -> None:
    source, phase = adding_kernel(f"{maker}:source")
    device = opened(maker, monkeypatch, **fails)
    function = device.compile(source, [phase])["add"]
    buffer = device.allocate(1024)
    device.write(buffer, np.zeros(16, np.uint8))
    step = [(device.prepare(function, phase, [buffer], ["n"]), 1, [3])]
    device.run(step)
    device.run(step)
    device.read(buffer, np.zeros(16, np.uint8))


@pytest.mark.parametrize("maker", MAKERS)
def test_a_device_that_is_lost(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened(maker, monkeypatch)
    buffer = device.allocate(64)
    device._driver.lost = True
    with pytest.raises(DeviceError, match=r"in a step on Imagined GPU: what .* \(code 719\)"):
        device.read(buffer, np.zeros(64, np.uint8))
    device.close()


@pytest.mark.parametrize("maker", MAKERS)
def test_code_that_is_not_for_it(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened(maker, monkeypatch)
    _, phase = adding_kernel(f"{maker}:source")
    with pytest.raises(ArtifactError, match="no kernel here"):
        device.compile(b"static int nothing;\n" * 20, [phase])
    with pytest.raises(ArtifactError, match="has no code for"):
        device.compile(b"\x7fELF of something else", [phase])
    source, _ = adding_kernel(f"{maker}:source")
    with pytest.raises(ArtifactError, match="the library has no kernel 'add'"):
        device.compile(source.replace(b" add(", b" sum("), [phase])
    device.close()


@pytest.mark.parametrize("maker", MAKERS)
def test_source_without_its_compiler(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = opened(maker, monkeypatch)
    source, phase = adding_kernel(f"{maker}:source")
    monkeypatch.setattr(cuda, "_nvrtc", lambda: None)
    monkeypatch.setattr(hip, "_first", lambda names: None)
    with pytest.raises(Unavailable, match=r"brings source, .* is not here"):
        device.compile(source, [phase])
    device.close()


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: cuda.checked(FakeCuda(version=10020)), "too old: it offers CUDA 10.2, and 11.4"),
        (lambda: cuda.checked(object_without("cuLaunchKernel", FakeCuda())), "too old"),
        (lambda: cuda.checked(FakeCuda(init=100)), "offers nothing: what CUDA calls it"),
        (lambda: hip.checked(FakeHip(init=100)), "offers nothing: what ROCm calls it"),
        (lambda: hip.checked(object_without("hipGraphLaunch", FakeHip())), "has no hipGraphLaunch"),
        (lambda: cuda.CudaDevice(FakeCuda(), 2), "device 2 was asked for, and 0 to 1 are here"),
        (lambda: hip.HipDevice(FakeHip(), 2), "device 2 was asked for, and 0 to 1 are here"),
        (lambda: cuda.CudaDevice(no_gpus(FakeCuda()), 0), "no GPU of theirs"),
        (lambda: hip.HipDevice(no_gpus(FakeHip()), 0), "no GPU that it runs on"),
    ],
)
def test_what_is_missing(made: Callable[[], object], told: str) -> None:
    with pytest.raises(Unavailable, match=told):
        made()


def object_without(name: str, driver: FakeDriver) -> Any:
    setattr(driver, name, None)
    return driver


def no_gpus(driver: FakeDriver) -> Any:
    driver.count = 0
    return driver


def test_a_context_that_is_refused() -> None:
    with pytest.raises(DeviceError, match="opening Imagined GPU: what CUDA calls it"):
        cuda.CudaDevice(FakeCuda(context=999), 0)


@pytest.mark.parametrize(("module", "driver"), [(cuda, FakeCuda()), (hip, FakeHip())])
def test_reports(module: Any, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_driver", lambda: module.checked(driver))
    first, second = module.reports()
    assert (first.present, second.present) == (True, True)
    assert second.name == f"{first.name}:1"
    assert "Imagined GPU" in first.detail
    assert "2.0 GiB memory" in first.detail
    assert module.available_memory() == driver.free
    driver.count = 0
    (nothing,) = module.reports()
    assert not nothing.present
    assert "no GPU" in nothing.missing


def test_source_is_told_from_code() -> None:
    assert is_source(adding_kernel("cuda:source")[0])
    assert not is_source(b"//\n// Generated by LLVM\n//\n\n.version 6.3\n.target sm_75")
    assert not is_source(b"\x7fELF\x02\x01")
    assert not is_source(b"__CLANG_OFFLOAD_BUNDLE__\x02\0\0\0\0\0\0\0" + b"\xff")
