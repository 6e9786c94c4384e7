"""The small integer grammar in which a manifest writes sizes, e.g. "n * 4096 + 15 // 16".

`evaluate("(n + 63) // 64", {"n": 70}) == 2`. Names, integers, + - * // % min max and
parentheses; nothing else, so a manifest from a stranger can do no harm.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from sterna.base.errors import ArtifactError

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}


def evaluate(text: str, dims: Mapping[str, int]) -> int:
    """The value of a size expression for given dims; ArtifactError if it is not one."""
    if len(text) > 1000:
        raise ArtifactError("a size in the manifest is longer than 1000 characters")
    try:
        return _value(ast.parse(text, mode="eval").body, dims)
    except (SyntaxError, ZeroDivisionError, RecursionError, ValueError) as error:
        raise ArtifactError(f"size {text!r} in the manifest cannot be computed: {error}") from None


def _value(node: ast.expr, dims: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.Name(id=name) if name in dims:
            return dims[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, dims), _value(right, dims))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args, keywords=[]) if args:
            values = [_value(a, dims) for a in args]
            return min(values) if name == "min" else max(values)
    raise ValueError(f"{ast.unparse(node)!r} is not allowed")
