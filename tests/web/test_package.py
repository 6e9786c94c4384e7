"""The package builds, its own tests pass, and it stays small."""

from __future__ import annotations

import gzip
from pathlib import Path

from building import run

MOST = 60_000  # bytes of all modules, each compressed as a server would
TEXT_SIDE = {"text.js", "tokenizer.js", "template.js"}  # loaded apart, with their libraries


def test_the_packages_own_tests(dist: Path) -> None:
    said = run("npm", "test", "--silent")
    assert "# fail 0" in said
    assert "# pass 0" not in said


def test_it_is_small(dist: Path) -> None:
    sizes = {
        path.name: len(gzip.compress(path.read_bytes(), 9))
        for path in dist.glob("*.js")
        if path.name not in TEXT_SIDE
    }
    assert sum(sizes.values()) < MOST, sizes
