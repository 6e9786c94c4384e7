"""A compiled library as a file: its manifest, and whether this machine can load it.

In: a path to a shared library for any machine. Out: the Manifest, or ArtifactError. Nothing here
executes the library; the headers are read only as far as the loader of the system would trust
them blindly, because a truncated library would kill the process instead of failing.
"""

from __future__ import annotations

import mmap
import platform
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sterna.base.artifact import MANIFEST_MARK, Manifest, decode
from sterna.base.errors import ArtifactError, Unavailable
from sterna.runtime.host import cpu_features

_ELF_MACHINES = {62: "x86-64", 183: "aarch64"}
_MACHO_MACHINES = {0x01000007: "x86-64", 0x0100000C: "aarch64"}
_PE_MACHINES = {0x8664: "x86-64", 0xAA64: "aarch64"}
_FORMATS = {"linux": "ELF", "android": "ELF", "darwin": "Mach-O", "win32": "PE"}
_MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True)
class Header:
    """What a library is made for. `end` is the last file byte its header speaks of."""

    format: str  # "ELF", "Mach-O", "PE" or "wasm"
    machine: str
    end: int


def read_manifest(path: Path) -> Manifest:
    """The manifest inside a library for any machine; ArtifactError if there is none."""
    return decode(manifest_bytes(path))


def manifest_bytes(path: Path) -> bytes:
    """The manifest's JSON, found by its mark.

    Of a library with programs for several machines, it is that of the last one whose instructions
    this CPU has, and of the first where it has none's: what runs here, or says what is missing.
    """
    with _mapped(path) as data:
        found = list(_manifests(data))
    if not found:
        raise ArtifactError(
            f"{path} has no Sterna manifest: it is not a library that `sterna compile` made"
        )
    if None in found:
        raise ArtifactError(f"{path} is damaged or truncated: compile the model again")
    texts = [text for text in found if text is not None]
    return texts[0] if len(texts) == 1 else _best(path, texts)


def _best(path: Path, texts: Sequence[bytes]) -> bytes:
    """The manifest of the last program, in the order that all of them tell, that can run here."""
    manifests = {m.target: (m, text) for m, text in zip(map(decode, texts), texts, strict=True)}
    told = {m.carried for m, _ in manifests.values()}
    carried = next(iter(told))
    if len(told) != 1 or len(carried) != len(texts) or set(carried) != set(manifests):
        raise ArtifactError(f"{path} is damaged or truncated: compile the model again")
    runs = [spec for spec in carried if not _missing(manifests[spec][0])]
    return manifests[runs[-1] if runs else carried[0]][1]


def _manifests(data: mmap.mmap) -> Iterator[bytes | None]:
    """Every manifest of a file; None for one whose length lies."""
    at = data.find(MANIFEST_MARK)
    while at >= 0:
        begin = at + len(MANIFEST_MARK) + 8
        size = int.from_bytes(data[begin - 8 : begin], "little")
        yield data[begin : begin + size] if size <= len(data) - begin else None
        at = data.find(MANIFEST_MARK, begin)


def _missing(manifest: Manifest) -> list[str]:
    """Features of a library that this CPU is known to lack."""
    found = cpu_features()
    return [name for name in manifest.features if found is not None and name not in found]


def read_header(path: Path) -> Header:
    """The file's format and machine; ArtifactError for anything but a shared library."""
    with _mapped(path) as data:
        try:
            header = _parse(data)
        except (struct.error, IndexError):
            raise ArtifactError(f"{path} is truncated inside its header") from None
        if header is None:
            raise ArtifactError(f"{path} is not a shared library")
        if header.end > len(data):
            raise ArtifactError(
                f"{path} is truncated: it has {len(data)} bytes, its header speaks of "
                f"{header.end}; compile the model again"
            )
        return header


def check_loadable(path: Path, manifest: Manifest) -> None:
    """Raise ArtifactError or Unavailable when this machine cannot run the library."""
    header = read_header(path)
    name = platform.machine().lower()
    here = (_FORMATS.get(sys.platform, "ELF"), _MACHINES.get(name, name))
    if (header.format, header.machine) != here:
        raise ArtifactError(
            f"{path} was compiled for {manifest.target} ({header.machine}, {header.format}), this "
            f"machine is {here[1]} ({here[0]}); compile the model with --target cpu"
        )
    missing = _missing(manifest)
    if missing:
        raise Unavailable(
            f"{path} was compiled for {manifest.target}, and this CPU lacks {', '.join(missing)}; "
            "compile the model for an older level, such as --target cpu:x86-64-v2"
        )


class _Mapped:
    """A file's bytes as a read-only map; ArtifactError when it cannot be read."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ArtifactError(f"{path} is empty, not a library") from None
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read as a library: {error.strerror}") from None

    def __enter__(self) -> mmap.mmap:
        return self.map

    def __exit__(self, *_: object) -> None:
        self.map.close()


def _mapped(path: Path) -> _Mapped:
    return _Mapped(path)


def _parse(data: mmap.mmap) -> Header | None:
    if data[:6] == b"\x7fELF\x02\x01":
        (machine,) = struct.unpack_from("<H", data, 18)
        return Header("ELF", _ELF_MACHINES.get(machine, f"machine {machine}"), max(_elf_ends(data)))
    if data[:4] == b"\xcf\xfa\xed\xfe":
        (machine,) = struct.unpack_from("<I", data, 4)
        known = _MACHO_MACHINES.get(machine, f"machine {machine}")
        return Header("Mach-O", known, max(_macho_ends(data)))
    if data[:2] == b"MZ":
        (at,) = struct.unpack_from("<I", data, 0x3C)
        (machine,) = struct.unpack_from("<H", data, at + 4)
        known = _PE_MACHINES.get(machine, f"machine {machine}")
        return Header("PE", known, max(_pe_ends(data, at)))
    if data[:4] == b"\0asm":
        return Header("wasm", "wasm32", 8)
    return None


def _elf_ends(data: mmap.mmap) -> Iterator[int]:
    segments, sections = struct.unpack_from("<QQ", data, 32)
    segment_size, segment_count, section_size, section_count = struct.unpack_from("<4H", data, 54)
    yield sections + section_size * section_count
    for i in range(segment_count):
        offset, _, _, size = struct.unpack_from("<4Q", data, segments + i * segment_size + 8)
        yield offset + size


def _macho_ends(data: mmap.mmap) -> Iterator[int]:
    count, commands_size = struct.unpack_from("<II", data, 16)
    yield 32 + commands_size
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        if command == 0x19:  # LC_SEGMENT_64
            offset, length = struct.unpack_from("<QQ", data, at + 40)
            yield offset + length
        if size == 0:
            return
        at += size


def _pe_ends(data: mmap.mmap, at: int) -> Iterator[int]:
    sections, optional_size = struct.unpack_from("<H12xH", data, at + 6)
    first = at + 24 + optional_size
    yield first + 40 * sections
    for i in range(sections):
        size, offset = struct.unpack_from("<II", data, first + 40 * i + 16)
        yield offset + size
