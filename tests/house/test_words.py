"""Words that say nothing name no module; no file names the machine that it was written on."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from source_files import REPO, modules

EMPTY_WORDS = {
    *("util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "stuff"),
    *("tools", "core_utils", "base_classes"),
}
TEXTS = {".py", ".md", ".toml", ".c", ".h", ".json", ".txt", ".yml", ".sh", ""}
# Homes and working folders; a path that a user is told to write is given relative, or under ~.
MACHINE = re.compile(r"(?<![\w./~$-])/(?:root|home|work|Users|mnt|data)/[\w.-]+")
HOST = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b|\bip-\d+-\d+-\d+-\d+\b|\.internal\b")
LATER = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


def tracked() -> list[Path]:
    """The files of the project, as git knows them."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout, to know which files are the project's")
    paths = [REPO / name.decode() for name in listed.split(b"\0") if name]
    return [path for path in paths if path.suffix in TEXTS and path.is_file()]


def lines_with(pattern: re.Pattern[str]) -> Iterator[str]:
    for path in tracked():
        if path == Path(__file__).resolve() or path.stat().st_size > 2**20:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if found := pattern.search(line):
                yield f"{path.relative_to(REPO)}:{number}: {found.group()}"


def test_no_module_is_called_utils() -> None:
    words = {part.removesuffix(".py") for path in modules() for part in path.split("/")}
    assert words & EMPTY_WORDS == set()


def test_no_path_of_a_machine() -> None:
    assert list(lines_with(MACHINE)) == []


def test_no_host() -> None:
    assert list(lines_with(HOST)) == []


def test_nothing_is_left_for_later() -> None:
    assert list(lines_with(LATER)) == []
