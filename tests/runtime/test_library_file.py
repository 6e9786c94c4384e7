"""Reading libraries as files: for every machine, truncated, tampered with, or none at all."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from toy_library import build_toy, toy_manifest

from sterna.base.artifact import MANIFEST_MARK, encode
from sterna.base.errors import ArtifactError, Unavailable
from sterna.base.target import parse_target
from sterna.codegen.embed import manifest_source, pool_source
from sterna.codegen.toolchain import compile_library
from sterna.runtime.library import check_loadable, read_header, read_manifest

FOREIGN = {
    "cpu:aarch64-linux": ("ELF", "aarch64"),
    "cpu:x86-64-v3-linux": ("ELF", "x86-64"),
    "cpu:aarch64-macos": ("Mach-O", "aarch64"),
    "cpu:x86_64-windows": ("PE", "x86-64"),
    "cpu:wasm32": ("wasm", "wasm32"),
}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("libraries")
    found = {}
    for i, spec in enumerate(FOREIGN):
        target = parse_target(spec)
        data = encode(toy_manifest(target=spec))
        found[spec] = folder / f"lib{i}{target.suffix}"
        compile_library(pool_source() + manifest_source(data), target, found[spec])
    return found


@pytest.mark.parametrize("spec", FOREIGN)
def test_manifests_are_read_for_every_machine(spec: str, libraries: dict[str, Path]) -> None:
    assert read_manifest(libraries[spec]) == toy_manifest(target=spec)
    header = read_header(libraries[spec])
    assert (header.format, header.machine) == FOREIGN[spec]
    assert header.end <= libraries[spec].stat().st_size


def test_a_library_for_another_machine_is_refused(libraries: dict[str, Path]) -> None:
    foreign = [spec for spec in FOREIGN if platform.machine().lower() not in spec.replace("-", "_")]
    assert foreign
    for spec in foreign:
        with pytest.raises(ArtifactError, match=f"compiled for {spec} .*--target cpu"):
            check_loadable(libraries[spec], read_manifest(libraries[spec]))


@pytest.mark.parametrize("spec", [spec for spec in FOREIGN if spec != "cpu:wasm32"])
def test_every_truncation_is_noticed(spec: str, libraries: dict[str, Path], tmp_path: Path) -> None:
    whole = libraries[spec].read_bytes()
    end = read_header(libraries[spec]).end
    cut = tmp_path / "cut"
    for size in [*range(1, end, max(1, end // 60)), end - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(ArtifactError):
            read_header(cut)


def test_a_manifest_length_that_lies(tmp_path: Path) -> None:
    data = build_toy(tmp_path).read_bytes()
    at = data.index(MANIFEST_MARK) + len(MANIFEST_MARK)
    lying = tmp_path / "lying"
    lying.write_bytes(data[:at] + (2**63).to_bytes(8, "little") + data[at + 8 :])
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest(lying)
    lying.write_bytes(data[:at] + (50).to_bytes(8, "little") + data[at + 8 :])
    with pytest.raises(ArtifactError, match="malformed"):
        read_manifest(lying)
    lying.write_bytes(data + data)
    with pytest.raises(ArtifactError, match="damaged"):
        read_manifest(lying)


def test_another_format_version(tmp_path: Path) -> None:
    library = build_toy(tmp_path, toy_manifest(format=99))
    with pytest.raises(ArtifactError, match=r"format 99.*compile the model again"):
        read_manifest(library)


@pytest.mark.parametrize("data", [b"", b"not a library", b"\x7fELF", b"MZ", b"\0asm", bytes(1000)])
def test_files_that_are_no_library(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        read_manifest(path)
    if data != b"\0asm":  # eight bytes are a whole wasm module
        with pytest.raises(ArtifactError):
            read_header(path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_manifest(path)


def test_missing_features_are_named(tmp_path: Path) -> None:
    library = build_toy(tmp_path)
    check_loadable(library, toy_manifest())
    with pytest.raises(Unavailable, match="lacks one, two"):
        check_loadable(library, toy_manifest(features=("one", "two")))
