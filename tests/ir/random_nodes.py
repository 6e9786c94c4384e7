"""Random expressions with the values of their variables: what property tests of the IR draw."""

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from sterna.base.dtype import I32, U32, DType
from sterna.ir.expr import Binary, Cast, Const, Expr, Select, Unary, Var

# Bounded Vars of every sort the simplifier treats apart; values are drawn inside the bounds.
INDICES = (
    Var("i", lo=0, hi=7),
    Var("j", lo=0, hi=63),
    Var("k", lo=-5, hi=5),
    Var("n", lo=1, hi=512),
)
WORDS = (Var("w", U32), Var("v", U32, lo=0, hi=15))
SMALL = st.sampled_from([-8, -3, -1, 0, 1, 2, 3, 4, 5, 7, 8, 16, 64])


def _nonzero(value: int) -> int:
    return value or 8


def _extend(dtype: DType) -> Callable[[st.SearchStrategy[Expr]], st.SearchStrategy[Expr]]:
    positive = st.sampled_from([1, 2, 3, 4, 8, 16, 64]).map(lambda c: Const(c, dtype))
    shift = st.integers(0, 9).map(lambda c: Const(c, dtype))
    mask = st.sampled_from([1, 3, 7, 15, 63, 255, 5]).map(lambda c: Const(c, dtype))

    def extend(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        comparison = st.builds(Binary, st.sampled_from(["<", "<=", "==", "!="]), inner, inner)
        condition = comparison | st.builds(
            Binary, st.sampled_from(["and", "or"]), comparison, comparison
        ) | st.builds(Unary, st.just("not"), comparison)  # fmt: skip
        return (
            st.builds(Binary, st.sampled_from(["+", "+", "-", "min", "max"]), inner, inner)
            | st.builds(Binary, st.just("*"), inner, positive | inner)
            | st.builds(Binary, st.sampled_from(["//", "%", "//", "%"]), inner, positive)
            | st.builds(Binary, st.sampled_from([">>", "<<"]), inner, shift)
            | st.builds(Binary, st.sampled_from(["&", "|", "^"]), inner, mask | inner)
            | st.builds(Select, condition, inner, inner)
            | st.builds(Unary, st.sampled_from(["neg", "invert"]), inner)
        )

    return extend


def integers(max_leaves: int = 12) -> st.SearchStrategy[Expr]:
    """Expressions of i32 over INDICES."""
    leaves = st.sampled_from(INDICES) | SMALL.map(lambda c: Const(c, I32))
    return st.recursive(leaves, _extend(I32), max_leaves=max_leaves)


def words(max_leaves: int = 12) -> st.SearchStrategy[Expr]:
    """Expressions of u32, wrapping freely, some of them cast to i32."""
    number = st.sampled_from([0, 1, 2, 7, 8, 15, 0xFFFFFFFF, 0x80000000])
    leaves = st.sampled_from(WORDS) | number.map(lambda c: Const(c, U32))
    leaves |= st.sampled_from(INDICES).map(lambda i: Cast(U32, i))
    deep = st.recursive(leaves, _extend(U32), max_leaves=max_leaves)
    return deep | deep.map(lambda e: Cast(U32, Cast(I32, e)))


def environments() -> st.SearchStrategy[dict[Var, int]]:
    """A value for each Var above, inside its bounds."""
    return st.fixed_dictionaries({
        var: st.integers(
            var.lo if var.lo is not None else 0, var.hi if var.hi is not None else 0xFFFFFFFF
        )
        for var in INDICES + WORDS
    })  # fmt: skip


def exact(expr: Expr, env: dict[Var, int]) -> int | bool:
    """The value in Python integers: i32 unbounded, u32 modulo 2**32."""
    if isinstance(expr, Var):
        return env[expr]
    if isinstance(expr, Const):
        assert not isinstance(expr.value, float)
        return expr.value
    if isinstance(expr, Cast):
        bits = expr.dtype.bits
        value = exact(expr.a, env) & ((1 << bits) - 1)
        return value - (1 << bits) if expr.dtype.kind == "int" and value >> (bits - 1) else value
    if isinstance(expr, Select):
        return exact(expr.a if exact(expr.cond, env) else expr.b, env)
    if isinstance(expr, Unary):
        value = exact(expr.a, env)
        result = {"neg": lambda: -value, "invert": lambda: ~value, "not": lambda: not value}
        return _modulo(result[expr.op](), expr.dtype)
    assert isinstance(expr, Binary)
    return _modulo(_binary(expr.op, exact(expr.a, env), exact(expr.b, env)), expr.dtype)


def _binary(op: str, a: int, b: int) -> int | bool:
    functions: dict[str, Callable[[int, int], int | bool]] = {
        "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
        "//": lambda a, b: a // b, "%": lambda a, b: a % b, "min": min, "max": max,
        "&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b,
        "<<": lambda a, b: a << b, ">>": lambda a, b: a >> b, "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b, "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
        "and": lambda a, b: bool(a and b), "or": lambda a, b: bool(a or b),
    }  # fmt: skip
    return functions[op](a, b)


def _modulo(value: int | bool, dtype: DType) -> int | bool:
    return value & 0xFFFFFFFF if dtype == U32 else value


def random_ints(rng: np.random.Generator, count: int) -> list[int]:
    """Small and large integers of both signs."""
    return [int(rng.integers(-(1 << b), (1 << b) + 1)) for b in rng.integers(1, 20, count)]
