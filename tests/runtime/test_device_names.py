"""Devices by name: what is here, what is missing, and libraries for another kind."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
import uuid

import pytest

from sterna import local
from sterna.base.errors import ArtifactError, Unavailable, UsageError
from sterna.base.target import KINDS, others_of_kind, parse_target
from sterna.runtime import cpu, opencl, vulkan, webgpu
from sterna.runtime import devices as names
from sterna.runtime.devices import automatic, choose_device, devices, parse_device, target_of
from sterna.runtime.report import DeviceReport
from sterna.runtime.work_groups import check_threads


class _Manifest:
    def __init__(self, target: str) -> None:
        self.target = target


def test_auto_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "may_have_gpu", lambda: False)
    assert parse_device("auto") == ("auto", 0)
    assert target_of("auto") == target_of("cpu") == "cpu"
    assert automatic() == ("cpu", "cpu was chosen: no GPU is here that would be faster")
    module, index = choose_device("auto", _Manifest("cpu"))  # type: ignore[arg-type]
    assert (module, index) == (cpu, 0)


def test_auto_takes_the_first_faster_device(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "cuda": [DeviceReport("cuda", False, "", "no driver")],
        "rocm": [DeviceReport("rocm", True, "in the processor", "")],
        "vulkan": [
            DeviceReport("vulkan", True, "llvmpipe", ""),
            DeviceReport("vulkan:1", True, "a card, 8 GiB memory", "", faster=True),
        ],
    }

    class Module:
        def __init__(self, kind: str) -> None:
            self.kind = kind

        def reports(self) -> list[DeviceReport]:
            return found.get(self.kind, [])

        def available_memory(self, index: int) -> int | None:
            return None

    monkeypatch.setattr(names, "may_have_gpu", lambda: True)
    monkeypatch.setattr(names, "_module", Module)
    assert automatic() == ("vulkan:1", "vulkan:1 was chosen: a card, 8 GiB memory")
    assert target_of("auto") == "vulkan"
    found["vulkan"].pop()
    assert automatic()[0] == "cpu"


def test_auto_says_what_it_took_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(names, "may_have_gpu", lambda: False)
    monkeypatch.setattr(local, "_made", lambda *given: given[2])
    assert local.locate("M", progress=lambda *report: told.append(report)) == "cpu"
    assert told == [("device", "cpu was chosen: no GPU is here that would be faster", 0, 0)]


@pytest.mark.parametrize("text", ["abacus", "cpu:x", "opencl:-1", "", "cpu:1:2"])
def test_a_name_that_is_none(text: str) -> None:
    with pytest.raises(Unavailable, match="possible are 'auto', 'cpu'"):
        parse_device(text)


def test_there_is_one_cpu() -> None:
    with pytest.raises(Unavailable, match="there is one CPU"):
        parse_device("cpu:1")


def test_no_loader_of_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match="OpenCL is not on this machine: "):
        opencl.open_device()
    (report,) = opencl.reports()
    assert not report.present
    assert "install" in report.missing


def test_no_loader_of_graphics_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match=r"Vulkan is not on this machine: .* is missing; install"):
        vulkan.open_device()
    (report,) = vulkan.reports()
    assert not report.present
    assert "install" in report.missing


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(Unavailable, match="pip install"):
        webgpu.open_device()
    assert not webgpu.reports()[0].present


def test_no_desktop_is_no_reason_to_print() -> None:
    first = webgpu.reports()[0]
    if not first.present:
        pytest.skip(first.missing)
    bare = {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}
    line = [sys.executable, "-c", "from sterna.runtime import webgpu; webgpu.open_device()"]
    done = subprocess.run(line, env=bare, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_drivers_keep_warnings_to_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    first = opencl.reports()[0]
    if not first.present:
        pytest.skip(first.missing)
    kernel = f"#warning {uuid.uuid4()}\n__kernel void nothing(__global int *x) {{}}\n"
    device = opencl.open_device()
    device.compile(kernel.encode(), [])
    device.close()
    assert capfd.readouterr().err == ""


def test_a_library_for_another_kind() -> None:
    with pytest.raises(ArtifactError, match="was compiled for opencl and cannot run on cpu"):
        choose_device("cpu", _Manifest("opencl"))  # type: ignore[arg-type]


def test_every_kind_is_reported() -> None:
    named = {report.name.partition(":")[0] for report in devices()}
    assert {*KINDS, "cuda", "rocm", "metal", "vulkan"} <= named


def test_threads_are_for_cpus() -> None:
    check_threads(None)
    with pytest.raises(UsageError, match="only the device cpu has threads"):
        check_threads(4)


def test_targets_that_are_none() -> None:
    assert parse_target("opencl").group_threads > 0
    with pytest.raises(UsageError, match="possible: opencl"):
        parse_target("opencl:abacus")
    with pytest.raises(UsageError) as caught:
        parse_target("abacus")
    assert set(str(caught.value).partition("possible: ")[2].split(", ")) >= set(KINDS)
    assert others_of_kind("opencl") == "opencl:subgroups, opencl:adreno or opencl:mali"
