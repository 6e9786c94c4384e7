"""The simplifier: values never change, results shrink, and the forms others rely on appear."""

import ast
import itertools
import math
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_nodes import INDICES, WORDS, environments, exact, integers, words

from sterna.base.dtype import BF16, BOOL, F32, I32, I64, U8, U32, DType
from sterna.ir.expr import (
    BINARY,
    UNARY,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    Intrin,
    Load,
    Select,
    Unary,
    Var,
    cast,
    equals,
    maximum,
    minimum,
    select,
    wrap,
)
from sterna.ir.interpret import evaluate_primfunc
from sterna.ir.loop import Alloc, For, If, Let, PrimFunc, Seq, Stmt, Store, store
from sterna.ir.rewrite import substitute, visit
from sterna.ir.rules import RULES, Rule
from sterna.ir.simplify import bounds, depends_on, linear, simplify, simplify_stmt

LAWS = settings(derandomize=True, max_examples=120, deadline=None)
T, J, K, N = INDICES
X, Y = Var("x"), Var("y")


def upto(name: str, extent: int) -> Var:
    return Var(name, lo=0, hi=extent - 1)


NO, NI, KI, R, KO = upto("no", 10), upto("ni", 64), upto("ki", 32), upto("r", 8), Var("ko", lo=0)
SPLIT = NO * 64 + NI


@LAWS
@given(integers(), environments())
def test_integers_keep_their_value(expr: Expr, env: dict[Var, int]) -> None:
    assert exact(simplify(expr), env) == exact(expr, env)


@LAWS
@given(words(), environments())
def test_wrapping_words_keep_their_value(expr: Expr, env: dict[Var, int]) -> None:
    assert exact(simplify(expr), env) == exact(expr, env)


@LAWS
@given(integers() | words(), environments())
def test_values_lie_within_bounds(expr: Expr, env: dict[Var, int]) -> None:
    lo, hi = bounds(expr)
    value = exact(expr, env)
    assert lo is None or lo <= value
    assert hi is None or value <= hi


@LAWS
@given(integers(8), environments())
def test_linear_form_sums_to_the_value(expr: Expr, env: dict[Var, int]) -> None:
    terms, constant = linear(expr)
    total = sum(c * exact(atom, env) for atom, c in terms.items()) + constant
    assert total == exact(expr, env)


# The rules, one by one.

SAMPLES = {
    "exact": [*range(-20, 21), 32, 64, 100, 4096],
    "bits": [*range(-20, 21), 0xFF, 0x7FFFFFFF],
    "float": [np.float32(v) for v in (0.0, -0.0, 1.5, -3.25, 1e38, math.inf, -math.inf, math.nan)],
    "logic": [False, True],
}
ENVIRONMENT = {
    "min": np.minimum, "max": np.maximum, "integer": lambda x: True, "bits": 32,
    "logical_and": lambda a, b: a and b, "logical_or": lambda a, b: a or b,
    "logical_not": lambda a: not a, "select": lambda c, a, b: a if c else b,
    "fma": lambda a, b, c: np.float32(np.float64(a) * np.float64(b) + np.float64(c)),
}  # fmt: skip


def meaningful(rule: Rule, names: dict[str, object]) -> bool:
    """Whether the rule's condition holds; a number that the rule divides by is never zero."""
    try:
        return eval(rule.condition or "True", {}, {**ENVIRONMENT, **names})
    except ZeroDivisionError:
        return False


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rule_keeps_the_value(rule: Rule) -> None:
    rng = random.Random(str(rule))
    letters = sorted(set(re.findall(r"\b(?:[xyz]|c\d)\b", rule.pattern)))
    used = 0
    for _ in range(20000):
        names = {letter: rng.choice(SAMPLES[rule.section]) for letter in letters}
        if "c2 == c0 * c1" in rule.condition and "c2" in names:
            names["c2"] = names["c0"] * names["c1"]
        if "c1 == -c0" in rule.condition:
            names["c1"] = -names["c0"]
        if (names.get("c0") == 0 and rule.section == "exact") or not meaningful(rule, names):
            continue
        before = eval(rule.pattern, {}, {**ENVIRONMENT, **names})
        after = eval(rule.replacement, {}, {**ENVIRONMENT, **names})
        same_bits = (
            rule.section == "float" and np.float32(before).tobytes() == np.float32(after).tobytes()
        )
        assert same_bits or before == after or (before != before and after != after), names
        used += 1
        if used == 200:
            break
    assert used >= 2, "the sampler never met the rule's condition"


def build(node: ast.expr, names: dict[str, Expr], dtype: DType) -> Expr:
    """An expression of exactly the shape of a rule's pattern, with no folding on the way."""
    symbols = {row.symbol: op for op, row in (BINARY | UNARY).items()}
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Constant):
        return Const(node.value, BOOL if isinstance(node.value, bool) else dtype)
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return Const(-node.operand.value, dtype)
    text = ast.unparse(node)
    parts = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
    if isinstance(node, ast.Call):
        name, args = parts[0].id, [build(part, names, dtype) for part in parts[1:]]
        if name == "select":
            return Select(*args)
        if name == "fma":
            return Intrin("fma", tuple(args))
        return Unary("not", *args) if name == "logical_not" else Binary(symbols[name], *args)
    args = [build(part, names, dtype) for part in parts]
    if isinstance(node, ast.UnaryOp):
        return Unary("neg" if text[0] == "-" else "invert", *args)
    symbol = ast.unparse(ast.copy_location(_with_names(node), node)).split()[1]
    return Binary(symbol, *args)


def _with_names(node: ast.expr) -> ast.expr:
    a, b = ast.Name("a"), ast.Name("b")
    if isinstance(node, ast.Compare):
        return ast.Compare(a, node.ops, [b])
    assert isinstance(node, ast.BinOp)
    return ast.BinOp(a, node.op, b)


def instance(rule: Rule) -> Expr | None:
    """The rule's pattern with small constants that meet its condition."""
    dtype = F32 if rule.section == "float" else I32
    letters = sorted(set(re.findall(r"\bc\d\b", rule.pattern)))
    kind = BOOL if rule.section == "logic" else dtype
    for values in itertools.product([8, 4, 2, 32, 15, 1, 3, -8], repeat=len(letters)):
        constants = dict(zip(letters, values, strict=True))
        names: dict[str, Expr] = {k: Const(v, I32) for k, v in constants.items()}
        least = dict.fromkeys("xyz", 0)
        if not meaningful(rule, {**least, **constants}):
            continue
        for letter in "xyz":
            kept = bool(re.search(rf"<= {letter} <", rule.condition))
            names[letter] = Var(letter, kind, 0, 0) if kept else Var(letter, kind)
            if kept:
                names[letter] = Var(letter, kind, 0, 1)
        if "integer" in rule.condition or ("==" in rule.pattern or "!=" in rule.pattern):
            names |= {k: Var(k, I32) for k in "xy"}
        return build(ast.parse(rule.pattern, mode="eval").body, names, dtype)
    return None


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rule_fires(rule: Rule) -> None:
    expr = instance(rule)
    assert expr is not None
    after = simplify(expr)
    assert count(after) <= count(expr)
    assert after is not expr


def count(expr: Expr) -> int:
    return sum(1 for _ in visit(expr))


# Termination and canonical form.


def text(expr: Expr) -> str:
    if isinstance(expr, Var):
        return expr.name
    if isinstance(expr, Const):
        return str(expr.value)
    if isinstance(expr, Binary):
        return f"({text(expr.a)} {expr.op} {text(expr.b)})"
    if isinstance(expr, Load):
        return f"{expr.buffer.name}[{', '.join(map(text, expr.index))}]"
    if isinstance(expr, Cast):
        return f"{expr.dtype}({text(expr.a)})"
    return f"{type(expr).__name__}"


@LAWS
@given(integers(16) | words(16))
def test_simplifying_again_changes_no_size(expr: Expr) -> None:
    once = simplify(expr)
    assert count(simplify(once)) <= count(once)


def test_the_same_object_comes_back_when_canonical() -> None:
    buffer = Buffer("x", F32, (Const(64, I32),))
    for expr in (T * 8 + J, T, Binary("+", buffer[T * 8 + J], buffer[T]), J // 7 % 3, N - T):
        assert simplify(expr) is expr


def test_equal_parts_become_one_object() -> None:
    both = simplify(Binary("min", (X + 1) // 7, (1 + X) // 7 % Y))
    quotients = [part for part in visit(both) if isinstance(part, Binary) and part.op == "//"]
    assert len(quotients) == 2
    assert quotients[0] is quotients[1]


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        (SPLIT // 64, "no"),
        (SPLIT % 64, "ni"),
        ((NO * 32 + KI) // 8, "((no * 4) + (ki // 8))"),
        ((KO * 8 + R) % 8, "r"),
        ((KO * 8 + R) // 8, "ko"),
        ((SPLIT * 64 + R * 8) // 8, "(((no * 512) + (ni * 8)) + r)"),
        ((X * 64 + R * 8 + T) % 64, "((r * 8) + i)"),
        (X // 8 * 8 + X % 8, "x"),
        (X - X // 8 * 8, "(x % 8)"),
        (X // 64 * 64 + X // 8 % 8 * 8 + X % 8, "x"),
        (X // 4 // 8, "(x // 32)"),
        (X % 64 // 8, "((x // 8) % 8)"),
        (X % 64 % 8, "(x % 8)"),
        (minimum(NI, 63), "ni"),
        (minimum(NI, X) - minimum(X, NI), "0"),
        (maximum(NI + X, X - 1), "(ni + x)"),
        ((X + 3) * 2 - X - X, "6"),
        (Y * X * 2 - X * Y * 2, "0"),
        ((X - 1) // 64, "(((x + 63) // 64) - 1)"),
        ((X * 8 + Y * 16 + 5) // 64, "(((y * 2) + x) // 8)"),
        ((X + 3) < (Y + X + 7), "(-4 < y)"),
        (wrap(10) > X * 4, "(x < 3)"),
        (wrap(10) >= X * 4, "(x <= 2)"),
        (equals(X * 4, 10), "False"),
        (wrap(64) > NI, "True"),
        (wrap(64) <= NI, "False"),
        (select(wrap(64) > NI, X, Y), "x"),
        ((NI + 64) % 64, "ni"),
        ((KI + 128) // 64, "2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_canonical_form(expr: Expr, expected: str) -> None:
    assert text(simplify(expr)) == expected


def test_words_are_masked_and_shifted_once() -> None:
    word = Buffer("w", U32, (Const(8, I32),))[X]
    assert text(simplify(word >> 4 >> 8)) == "(w[x] >> 12)"
    assert text(simplify(word & 255 & 15)) == "(w[x] & 15)"
    assert text(simplify((word >> 28) & 15)) == "(w[x] >> 28)"
    assert bounds(word & 15) == (0, 15)
    assert bounds(word >> 28) == (0, 15)


def test_words_that_may_wrap_are_left_alone() -> None:
    word = WORDS[0]
    assert text(simplify((word * 8) // 8)) == "((w * 8) // 8)"
    assert text(simplify((word + 1) < (word + 2))) == "((w + 1) < (w + 2))"
    nibble = WORDS[1]
    assert text(simplify((nibble * 8) // 8)) == "v"
    assert text(simplify(cast(I32, cast(U32, T)))) == "i"
    assert text(simplify(cast(I32, cast(U32, K)))) == "i32(u32(k))"
    assert text(simplify(cast(I64, cast(U8, J)))) == "i64(j)"


def test_floats_change_only_where_exact() -> None:
    x, zero = Var("x", F32), Const(0.0, F32)
    assert simplify(x * 1.0) is x
    assert text(simplify(x + zero)) == "(x + 0.0)"
    assert text(simplify(x * 0.0)) == "(x * 0.0)"
    assert simplify(x - 0.0) is x
    assert text(simplify(x - x)) == "(x - x)"
    assert text(simplify(Binary("==", x, x))) == "(x == x)"
    assert text(simplify(Const(0.1, F32) + Const(0.2, F32))) == str(
        float(np.float32(0.1) + np.float32(0.2))
    )
    half = Const(0.1, BF16)
    assert isinstance(simplify(Binary("+", half, half)), Binary)


def test_bounds_without_knowledge_are_none() -> None:
    assert bounds(X) == (None, None)
    assert bounds(N * 2 + 1) == (3, 1025)
    assert bounds(Var("x", lo=0) % 8) == (0, 7)
    assert bounds(Var("x", lo=3) // 2) == (1, None)
    assert bounds(Var("x", F32)) == (None, None)


def test_linear_and_dependence() -> None:
    terms, constant = linear((X + Y * 3) * 2 + J // 4 + 5 - X)
    named = {text(atom): coefficient for atom, coefficient in terms.items()}
    assert named == {"y": 6, "x": 1, "(j // 4)": 1}
    assert constant == 5
    assert depends_on(J // 4 + X, J)
    assert not depends_on(J // 4 + X, Y)


# Statements.

OUT = Buffer("out", F32, (Const(4096, I32),))


def test_loops_give_their_variables_bounds() -> None:
    a, b = Var("a"), Var("b")
    body = store(OUT, (a * 8 + b) // 8, 1.0)
    after = simplify_stmt(For(a, Const(64, I32), For(b, Const(8, I32), body)))
    assert isinstance(after, For)
    assert isinstance(after.body, For)
    assert after.body.body.index == (a,)


def test_a_variable_of_two_loops_has_the_union_of_their_bounds() -> None:
    a = Var("a")
    body = If(a < wrap(8), store(OUT, a, 1.0))
    after = simplify_stmt(Seq((For(a, Const(8, I32), body), For(a, Const(9, I32), body))))
    assert isinstance(after, Seq)
    assert all(isinstance(loop.body, If) for loop in after.stmts)


def test_an_extent_may_depend_on_an_outer_variable() -> None:
    a, b = Var("a"), Var("b")
    inner = For(b, a + 1, If(b < wrap(4), store(OUT, b, 1.0), store(OUT, b, 2.0)))
    after = simplify_stmt(For(a, Const(4, I32), inner))
    assert after.body.body.value.value == 1.0


def test_symbolic_extents_bound_their_variables() -> None:
    a, b = Var("a"), Var("b")
    guarded = If(a < N, store(OUT, minimum(N - 1, a), OUT[maximum(a + b - N, 0)]))
    after = simplify_stmt(For(a, N, For(b, N - a, guarded)))
    assert text(after.body.body.index[0]) == "a"
    assert text(after.body.body.value.index[0]) == "0"


def test_a_variable_of_two_symbolic_loops_keeps_its_guard() -> None:
    a, m = Var("a"), Var("m", lo=1)
    guarded = If(a < N, store(OUT, a, 1.0))
    after = simplify_stmt(Seq((For(a, N, guarded), For(a, m, guarded))))
    assert all(isinstance(loop.body, If) for loop in after.stmts)


def test_loops_of_one_turn_and_decided_branches_go() -> None:
    a, b = Var("a"), Var("b", lo=0)
    inner = If(b < wrap(1), store(OUT, a * 2 + b, 1.0), store(OUT, a, 2.0))
    after = simplify_stmt(For(a, Const(4, I32), For(b, Const(1, I32), inner)))
    assert text(after.body.index[0]) == "(a * 2)"
    assert after.body.value.value == 1.0


def test_loops_without_turns_leave_nothing_behind() -> None:
    a, b, scratch = Var("a"), Var("b"), Buffer("s", F32, (Const(1, I32),), "local")
    empty = For(a, Const(4, I32), Alloc(scratch, For(b, Const(0, I32), store(OUT, a, 1.0))))
    after = simplify_stmt(Seq((empty, store(OUT, 0, 2.0), If(a < wrap(3), empty))))
    assert after.index[0].value == 0


def test_let_carries_the_bounds_of_its_value() -> None:
    a, v = Var("a"), Var("v")
    loop = For(a, Const(64, I32), Let(v, a // 8, store(OUT, v // 8, 1.0)))
    assert text(simplify_stmt(loop).body.body.index[0]) == "0"


def test_an_untouched_statement_is_the_same_object() -> None:
    a = Var("a")
    loop = For(a, Const(64, I32), store(OUT, a * 8, OUT[a] + 1.0))
    assert simplify_stmt(loop) is loop


PARTS = integers(6)


@st.composite
def guarded_loops(draw: st.DrawFn) -> Stmt:
    """Two loops around stores and guards, the extents constant, symbolic or each other's."""
    out = Buffer("out", I32, (Const(64, I32),))
    outer, inner = Var("i"), Var("j")
    limit = minimum(N, 5)
    extents = [wrap(1), wrap(4), limit, limit - 1, limit + 2]
    values = {T: outer, J: inner}
    index, value, a, b = (substitute(draw(PARTS), values) for _ in range(4))
    near = draw(st.sampled_from([limit, limit - 1, outer, inner + outer - limit, b]))
    guard = Binary(draw(st.sampled_from(["<", "<=", "==", "!="])), a, near)
    clamped = maximum(minimum(inner + outer, near), draw(st.sampled_from([outer, wrap(0)])))
    body = If(guard, store(out, index % 64, value), store(out, clamped % 64, inner))
    both = Seq((body, store(out, (clamped + 7) % 64, a)))
    within = draw(st.sampled_from([*extents, outer, outer + 1, limit - outer]))
    return For(outer, draw(st.sampled_from(extents)), For(inner, within, both))


@settings(derandomize=True, max_examples=150, deadline=None)
@given(guarded_loops(), st.integers(1, 7), st.integers(-5, 5))
def test_statements_keep_their_meaning(loops: Stmt, n: int, k: int) -> None:
    out = next(part.buffer for part in visit(loops) if isinstance(part, Store))
    results = []
    for body in (loops, simplify_stmt(loops)):
        results.append(np.zeros(64, np.int32))
        func = PrimFunc("f", (out,), (N, K), body)
        evaluate_primfunc(func, {out: results[-1]}, {N: n, K: k})
    np.testing.assert_array_equal(*results)
