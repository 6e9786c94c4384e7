"""Files of at most 500 lines and functions of at most 60, unless a reason stands here.

A docstring does not count in a function: those of passes hold IR before and after.
"""

import ast
from collections.abc import Iterator

from source_files import PACKAGE, modules

MAX_FILE = 500
MAX_FUNCTION = 60

# Path, or path:function -> why it is longer. An entry that is no longer needed fails.
REASONS: dict[str, str] = {}


def sizes() -> Iterator[tuple[str, int, int]]:
    """(name, lines, limit) of every file and function."""
    for path, tree in modules().items():
        yield path, len((PACKAGE / path).read_text().splitlines()), MAX_FILE
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path}:{node.name}", lines_of(node), MAX_FUNCTION


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    told = function.body[0] if ast.get_docstring(function) is not None else None
    docstring = (told.end_lineno or 0) - told.lineno + 1 if told else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_nothing_is_too_long_without_a_reason() -> None:
    long = {name: lines for name, lines, limit in sizes() if lines > limit}
    assert {name: lines for name, lines in long.items() if name not in REASONS} == {}


def test_every_reason_is_needed() -> None:
    long = {name for name, lines, limit in sizes() if lines > limit}
    assert set(REASONS) - long == set()


def test_every_file_says_what_it_is() -> None:
    silent = [path for path, tree in modules().items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []
