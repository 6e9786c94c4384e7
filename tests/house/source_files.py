"""What the house tests look at: the files of the package, read and parsed once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PACKAGE = REPO / "src" / "sterna"


@cache
def modules() -> dict[str, ast.Module]:
    """Every Python file of the package by its path in it, as "ir/expr.py"."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in files}


def room(path: str) -> str:
    """The folder, or the file at the top, that a path belongs to: "ir", "compiler"."""
    return path.split("/")[0].removesuffix(".py")
