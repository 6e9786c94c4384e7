"""Devices by name: which there are, what each lacks, and loading a library on one.

A device is a module of this room, found by the name in a target's row. It offers `load`,
`available_memory` and `reports`, as `DeviceModule` says; nobody else calls it by name. A device
that is asked for and absent is an error; never is another taken instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from sterna.base.artifact import Manifest
from sterna.base.errors import ArtifactError, Unavailable
from sterna.base.target import KINDS, parse_target
from sterna.runtime.executable import Executable
from sterna.runtime.host import may_have_gpu
from sterna.runtime.params import WeightReader
from sterna.runtime.report import DeviceReport
from sterna.runtime.web_folder import Offer, choose_program, is_web_folder, read_index
from sterna.runtime.work_groups import Device

AUTO = "auto"


class DeviceModule(Protocol):
    """What a device's module offers. `index` counts devices of its kind."""

    def load(
        self,
        library: Path,
        weights: Mapping[str, WeightReader],
        *,
        num_pages: int,
        threads: int | None,
        index: int,
        packed: Path | None = None,
    ) -> Executable:
        """`packed`: where to keep the weights as kernels read them, for the next load to map.

        A device with memory of its own copies them there and has no use for it.
        """
        ...

    def available_memory(self, index: int) -> int | None:
        """Bytes that can still be allocated; Unavailable where the device is not here."""
        ...

    def reports(self) -> list[DeviceReport]: ...


class GroupModule(DeviceModule, Protocol):
    """A device that runs work groups."""

    def open_device(self, index: int) -> Device: ...


class ChoosingModule(DeviceModule, Protocol):
    """A device whose programs come in folders, one for each set of features and limits."""

    def offer(self, index: int) -> Offer: ...


def devices() -> list[DeviceReport]:
    """A report on every device Sterna knows by name, the usable ones first."""
    found = [report for kind in KINDS for report in _module(kind).reports()]
    return sorted(found, key=lambda report: not report.present)


def parse_device(text: str) -> tuple[str, int]:
    """(kind, index) of "auto" or "kind[:index]"; Unavailable for a device that is not here."""
    kind, colon, number = text.partition(":")
    index = 0 if not colon else int(number) if number.isdecimal() else -1
    if text == AUTO:
        return AUTO, 0
    if kind not in KINDS or index < 0:
        possible = ", ".join(repr(k) for k in (AUTO, *KINDS))
        raise Unavailable(
            f"device is {text!r}, possible are {possible}, and a number after a colon where there "
            "are several of a kind"
        )
    _module(kind).available_memory(index)
    return kind, index


def automatic() -> tuple[str, str]:
    """The device that `auto` stands for, and why: the first GPU that feeds a model faster.

    Kinds are asked in the order of KINDS. Drivers are not even loaded where the machine has no
    GPU at all, and those that compute on the processor are never taken.
    """
    for kind in KINDS[1:] if may_have_gpu() else ():
        for report in _module(kind).reports():
            if report.present and report.faster:
                return report.name, f"{report.name} was chosen: {report.detail}"
    return KINDS[0], f"{KINDS[0]} was chosen: no GPU is here that would be faster"


def target_of(device: str) -> str:
    """The target to compile for where nothing but the device is named."""
    kind, _ = parse_device(device)
    return parse_device(automatic()[0])[0] if kind == AUTO else kind


def library_in(library: Path, device: str) -> Path:
    """The library itself; of a folder for browsers, the program in it that the device runs.

    Unavailable where it runs none, ArtifactError where the folder is damaged.
    """
    if not is_web_folder(library):
        return library
    index = read_index(library)
    kind, number = parse_device(device)
    found = parse_target(index.programs[0].target).kind
    if kind not in (AUTO, found):
        raise ArtifactError(
            f"{library} was compiled for {found} and cannot run on {kind}; compile the model with "
            f"--target {kind}"
        )
    module = cast(ChoosingModule, _module(found))
    return library / choose_program(index, module.offer(number)).file


def choose_device(device: str, manifest: Manifest) -> tuple[DeviceModule, int]:
    """The module that runs a library on a device; ArtifactError where it is for another kind."""
    kind, index = parse_device(device)
    wanted = parse_target(manifest.target)
    module = _module(wanted.kind)
    if kind not in (AUTO, wanted.kind):
        raise ArtifactError(
            f"the library was compiled for {manifest.target} and cannot run on {kind}; compile "
            f"the model with --target {kind}"
        )
    return module, index


def open_device(device: str) -> Device:
    """A device that runs work groups, without a model; Unavailable where it is not here."""
    kind, index = parse_device(device)
    return cast(GroupModule, _module(kind)).open_device(index)


def _module(kind: str) -> DeviceModule:
    return cast(DeviceModule, import_module(f"sterna.runtime.{parse_target(kind).device}"))
