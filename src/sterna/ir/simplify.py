"""Expressions and statements to their canonical, smaller form.

In: any expression or statement. Out: one of equal value (integers exactly, floats bit for bit),
the same object when nothing applies. Integer sums are collected: like terms merged, larger strides
first, the constant last. Everything else is the rule table in `rules`, and what bounds decide.
Equal subexpressions come out as one object. i32 and i64 are taken not to overflow; other integer
types wrap, and rules on sums apply to them only where bounds prove that they do not.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import reduce

from sterna.base.dtype import BOOL, DType
from sterna.ir.bounds import Interval, Intervals, bounds, scale, type_range
from sterna.ir.expr import (
    BINARY,
    Binary,
    Cast,
    Const,
    Expr,
    Intrin,
    Load,
    Select,
    Unary,
    Var,
    binary,
)
from sterna.ir.folding import converted, fold_float, wrapped
from sterna.ir.linear import Sum
from sterna.ir.loop import For, Let, Stmt
from sterna.ir.matcher import compile_rules
from sterna.ir.rewrite import Rewriter, visit
from sterna.ir.rules import RULES
from sterna.ir.structure import simplify_structure

__all__ = ["Simplifier", "bounds", "depends_on", "linear", "simplify", "simplify_stmt"]

_COMPILED = compile_rules(RULES)


def _constant_key(value: int | float | bool, dtype: DType) -> Hashable:
    # repr tells -0.0 from 0.0, and makes every NaN one
    return (dtype.name, repr(value) if isinstance(value, float) else value)


class Simplifier:
    """One run of simplification: its memory of what was seen, and the bounds that hold.

    `ranges` gives bounds of Vars that do not carry their own; `values` replaces Vars.
    """

    def __init__(
        self,
        ranges: Mapping[Var, Interval] | None = None,
        values: Mapping[Var, Expr] | None = None,
    ) -> None:
        self.values = dict(values or {})
        self.interval = Intervals(ranges)
        self.walker = Rewriter(self.rule, simplify_structure)
        self.interned: dict[Hashable, Expr] = {}
        self.done: dict[Expr, Expr] = {}
        self.sums: dict[Expr, Sum] = {}
        self.order: dict[Expr, str] = {}
        self.last: dict[Expr, Sum | None] = {}  # symbolic maxima of loop variables

    def expr(self, expr: Expr) -> Expr:
        return self.walker.expr(expr)

    def rule(self, expr: Expr) -> Expr:
        """Simplify an expression whose children are simplified."""
        if type(expr) is Var:
            return self.values.get(expr, expr)
        expr = self.interned.setdefault(_key(expr), expr)
        found = self.done.get(expr)
        if found is None:
            found = self.step(expr)
            self.done[expr] = self.done[found] = found
        return found

    def step(self, expr: Expr) -> Expr:
        if isinstance(expr, Binary):
            return self.binary_step(expr)
        if isinstance(expr, Cast):
            return self.cast_step(expr)
        if isinstance(expr, Unary):
            return self.unary_step(expr)
        if isinstance(expr, Select):
            dtype = self.interval.dtype(expr.a)
            return self.table("logic", "select", expr, dtype) or expr
        if isinstance(expr, Intrin):
            dtype = self.interval.dtype(expr.args[0])
            return (self.table("float", expr.name, expr, dtype) if dtype.is_float else None) or expr
        return expr

    def table(self, section: str, op: str, expr: Expr, dtype: DType) -> Expr | None:
        rules = _COMPILED.get((section, op))
        return rules(self, expr, dtype) if rules is not None else None

    # What the compiled rules call.

    def sum(self, expr: Expr) -> Sum:
        """The collected terms of a simplified integer expression."""
        found = self.sums.get(expr)
        if found is None:
            found = self.sums[expr] = self.collect(expr)
        return found

    def build(self, terms: Sum, dtype: DType) -> Expr:
        """The canonical expression of collected terms."""
        ordered = sorted(terms.terms.items(), key=self.term_order)
        total: Expr | None = None
        for atom, coefficient in ordered:
            total = self.add_term(total, atom, coefficient, dtype)
        constant = terms.constant
        if total is None:
            return self.number(constant, dtype)
        if constant:
            op = "+" if constant > 0 else "-"
            total = self.known(op, total, self.number(abs(constant), dtype))
        self.sums.setdefault(total, terms)
        return total

    def number(self, value: int | float | bool, dtype: DType) -> Expr:
        if dtype.is_int:
            value = wrapped(int(value), dtype)
        key = _constant_key(value, dtype)
        found = self.interned.get(key)
        if found is None:
            found = self.interned[key] = Const(value, dtype)
            self.done[found] = found
        return found

    def binary(self, op: str, a: Expr, b: Expr) -> Expr:
        return self.rule(Binary(op, a, b))

    def unary(self, op: str, a: Expr) -> Expr:
        return self.rule(Unary(op, a))

    def select(self, cond: Expr, a: Expr, b: Expr) -> Expr:
        return self.rule(Select(cond, a, b))

    def intrin(self, name: str, *args: Expr) -> Expr:
        return self.rule(Intrin(name, args))

    # One step for each kind of node.

    def binary_step(self, expr: Binary) -> Expr:
        dtype, op = self.interval.dtype(expr.a), expr.op
        if dtype.is_float:
            return self.table("float", op, expr, dtype) or fold_float(expr) or expr
        if dtype == BOOL:
            return self.table("logic", op, expr, dtype) or expr
        if isinstance(expr.a, Const) and isinstance(expr.b, Const):
            folded = binary(op, expr.a, expr.b)
            if isinstance(folded, Const):
                return self.number(folded.value, folded.dtype)
        if BINARY[op].compares:
            return self.table("bits", op, expr, dtype) or self.compare(expr)
        return self.integer_step(expr, dtype)

    def integer_step(self, expr: Binary, dtype: DType) -> Expr:
        op = expr.op
        if op in ("+", "-", "*"):  # collected sums have an order of their own
            simple = self.table("bits", op, expr, dtype)
            return simple or self.table("exact", "+", expr, dtype) or self.collected(expr)
        lo, hi = self.interval(expr)
        if lo == hi:
            return self.number(int(lo), dtype)
        if BINARY[op].commutative and self.out_of_order(expr):
            return self.rule(Binary(op, expr.b, expr.a))
        if op in ("min", "max"):
            chosen = self.choose(expr)
            if chosen is not None:
                return chosen
        elif op == "%" and isinstance(expr.b, Const):
            shifted = self.one_period(expr.a, int(expr.b.value), dtype)
            if shifted is not None:
                return shifted
        return self.table("bits", op, expr, dtype) or self.table("exact", op, expr, dtype) or expr

    def out_of_order(self, expr: Binary) -> bool:
        """Whether operands that may change places should: constants last, others by name."""
        if isinstance(expr.b, Const):
            return False
        return isinstance(expr.a, Const) or self.name_of(expr.a) > self.name_of(expr.b)

    def one_period(self, value: Expr, period: int, dtype: DType) -> Expr | None:
        """x % c -> x - q * c, if x // c is q throughout."""
        lo, hi = self.interval(value)
        if period <= 0 or math.isinf(lo) or math.isinf(hi) or lo // period != hi // period:
            return None
        return self.build(self.sum(value).plus(Sum({}, int(-(lo // period) * period))), dtype)

    def unary_step(self, expr: Unary) -> Expr:
        dtype = self.interval.dtype(expr.a)
        if dtype.is_int:
            lo, hi = self.interval(expr)
            if lo == hi:
                return self.number(int(lo), dtype)
            simple = self.table("bits", expr.op, expr, dtype)
            return simple or (self.collected(expr) if expr.op == "neg" else expr)
        if expr.op == "neg" and isinstance(expr.a, Const) and dtype.is_float:
            return self.number(-expr.a.value, dtype)
        return self.table("float" if dtype.is_float else "logic", expr.op, expr, dtype) or expr

    def cast_step(self, expr: Cast) -> Expr:
        source, target = self.interval.dtype(expr.a), expr.dtype
        if source == target:
            return expr.a
        if source.is_float or target == BOOL:
            return expr
        if isinstance(expr.a, Const):
            return self.number(converted(expr.a.value, target), target)
        inner = expr.a
        if not (isinstance(inner, Cast) and target.is_int and inner.a.dtype.is_int):
            return expr
        lo, hi = self.interval(inner.a)
        least, most = type_range(inner.dtype)
        if least <= lo and hi <= most:  # the inner cast changed nothing
            return self.rule(Cast(target, inner.a))
        return expr

    # Sums.

    def collect(self, expr: Expr) -> Sum:
        if isinstance(expr, Const) and expr.dtype.is_int:
            return Sum({}, int(expr.value))
        if not (isinstance(expr, Binary | Unary) and self.interval.dtype(expr).is_int):
            return Sum({expr: 1})
        return Sum({expr: 1}) if self.interval.leaves_type(expr) else self.collect_operation(expr)

    def collect_operation(self, expr: Binary | Unary) -> Sum:
        if isinstance(expr, Unary):
            return self.sum(expr.a).times(-1) if expr.op == "neg" else Sum({expr: 1})
        if expr.op == "+":
            return self.sum(expr.a).plus(self.sum(expr.b))
        if expr.op == "-":
            return self.sum(expr.a).plus(self.sum(expr.b), -1)
        if expr.op == "*":
            return self.collect_product(expr)
        return Sum({expr: 1})

    def collect_product(self, expr: Binary) -> Sum:
        a, b = self.sum(expr.a), self.sum(expr.b)
        if not b.terms:
            return a.times(b.constant)
        if not a.terms:
            return b.times(a.constant)
        factors, coefficient = [], 1
        for part, terms in ((expr.a, a), (expr.b, b)):
            if len(terms.terms) == 1 and not terms.constant:
                ((part, factor),) = terms.terms.items()
                coefficient *= factor
            factors += _factors(part)
        factors.sort(key=self.name_of)
        atom = reduce(lambda x, y: self.known("*", x, y), factors)
        return Sum({atom: coefficient})

    def collected(self, expr: Expr) -> Expr:
        terms = self.sum(expr)
        if terms.terms.get(expr) == 1:
            return expr
        return self.build(terms, self.interval.dtype(expr))

    def term_order(self, term: tuple[Expr, int]) -> tuple[bool, int, str]:
        """Positive terms before negative ones, then larger strides, then by name."""
        return (term[1] < 0, -abs(term[1]), self.name_of(term[0]))

    def name_of(self, expr: Expr) -> str:
        """A short text to order terms by; not unique."""
        found = self.order.get(expr)
        if found is None:
            found = self.order[expr] = self.describe(expr)[:80]
        return found

    def describe(self, expr: Expr) -> str:
        if isinstance(expr, Var):
            return expr.name
        if isinstance(expr, Binary):
            return f"({self.name_of(expr.a)}{expr.op}{self.name_of(expr.b)})"
        if isinstance(expr, Load):
            return f"{expr.buffer.name}[{','.join(map(self.name_of, expr.index))}]"
        if isinstance(expr, Cast):
            return f"({expr.dtype.name}){self.name_of(expr.a)}"
        return f"~{type(expr).__name__}"

    def add_term(self, total: Expr | None, atom: Expr, coefficient: int, dtype: DType) -> Expr:
        if total is None:
            if coefficient == -1:
                return self.known_unary("neg", atom)
            return atom if coefficient == 1 else self.scaled(atom, coefficient, dtype)
        size = abs(coefficient)
        term = atom if size == 1 else self.scaled(atom, size, dtype)
        return self.known("+" if coefficient > 0 else "-", total, term)

    def scaled(self, atom: Expr, factor: int, dtype: DType) -> Expr:
        return self.known("*", atom, self.number(factor, dtype))

    def known(self, op: str, a: Expr, b: Expr) -> Expr:
        """A Binary that is canonical by construction."""
        key = (op, id(a), id(b))
        found = self.interned.get(key)
        if found is None:
            found = self.interned[key] = Binary(op, a, b)
        self.done[found] = found
        return found

    def known_unary(self, op: str, a: Expr) -> Expr:
        expr = Unary(op, a)
        found = self.interned.setdefault(_key(expr), expr)
        self.done[found] = found
        return found

    # What bounds decide.

    def difference(self, a: Expr, b: Expr) -> tuple[Sum, Interval]:
        """a - b as terms, and its interval: from the terms, or from the two sides."""
        terms = self.sum(a).plus(self.sum(b), -1)
        lo, hi = self.range_of(terms)
        (a_lo, a_hi), (b_lo, b_hi) = self.interval(a), self.interval(b)
        lo, hi = max(lo, a_lo - b_hi), min(hi, a_hi - b_lo)
        if self.last and terms.terms.keys() & self.last.keys():
            lo = max(lo, self.range_of(self.at_end(terms, -1))[0])
            hi = min(hi, self.range_of(self.at_end(terms, 1))[1])
        return terms, (lo, hi)

    def range_of(self, terms: Sum) -> Interval:
        lo: int | float = terms.constant
        hi: int | float = terms.constant
        for atom, coefficient in terms.terms.items():
            least, most = scale(self.interval(atom), coefficient)
            lo, hi = lo + least, hi + most
        return lo, hi

    def at_end(self, terms: Sum, sign: int) -> Sum:
        """Terms no larger (sign -1) or no smaller (1): loop variables at their last value."""
        for var, last in reversed(self.last.items()):  # inner ones end at what outer ones say
            coefficient = terms.terms.get(var, 0)
            if last is not None and coefficient * sign > 0:
                terms = terms.plus(Sum({var: -coefficient})).plus(last, coefficient)
        return terms

    def choose(self, expr: Binary) -> Expr | None:
        """min or max whose order is known."""
        _, (lo, hi) = self.difference(expr.a, expr.b)
        if hi <= 0:
            return expr.a if expr.op == "min" else expr.b
        if lo >= 0:
            return expr.b if expr.op == "min" else expr.a
        return None

    def compare(self, expr: Binary) -> Expr:
        terms, interval = self.difference(expr.a, expr.b)
        truth = _decide(expr.op, *interval)
        if truth is None and not terms.terms:
            truth = bool(BINARY[expr.op].numpy(terms.constant, 0))
        if truth is not None:
            return self.number(truth, BOOL)
        if expr.a.dtype.kind == "uint" or expr.a.dtype.bits < 32:
            return expr
        return self.balanced(expr, terms)

    def balanced(self, expr: Binary, terms: Sum) -> Expr:
        """Terms on the side where they are positive, the constant on the other, no divisor."""
        dtype, divisor = expr.a.dtype, math.gcd(*terms.terms.values())
        constant = _divided(expr.op, terms.constant, divisor)
        if constant is None:
            return self.number(expr.op == "!=", BOOL)
        coefficients = {atom: c // divisor for atom, c in terms.terms.items()}
        left = Sum({atom: c for atom, c in coefficients.items() if c > 0})
        right = Sum({atom: -c for atom, c in coefficients.items() if c < 0})
        if left.terms:
            right = Sum(right.terms, -constant)
        else:
            left = Sum({}, constant)
        return self.known(expr.op, self.build(left, dtype), self.build(right, dtype))


def _divided(op: str, constant: int, divisor: int) -> int | None:
    """k' with `d * x + k op 0` if and only if `x + k' op 0`; None if == never holds."""
    if op == "<":
        return constant // divisor
    if op == "<=":
        return -(-constant // divisor)
    return None if constant % divisor else constant // divisor


def _decide(op: str, lo: int | float, hi: int | float) -> bool | None:
    """The truth of `d op 0` for every d in lo..hi, None if it depends."""
    if op == "<":
        return True if hi < 0 else False if lo >= 0 else None
    if op == "<=":
        return True if hi <= 0 else False if lo > 0 else None
    differs = hi < 0 or lo > 0
    return (op == "!=") if differs else None


def _factors(expr: Expr) -> list[Expr]:
    if isinstance(expr, Binary) and expr.op == "*" and not isinstance(expr.b, Const):
        return _factors(expr.a) + _factors(expr.b)
    return [expr]


def _key(expr: Expr) -> Hashable:
    """What makes two expressions with identical children the same."""
    if isinstance(expr, Binary):
        return (expr.op, id(expr.a), id(expr.b))
    if isinstance(expr, Const):
        return _constant_key(expr.value, expr.dtype)
    if isinstance(expr, Load):
        return (id(expr.buffer), *map(id, expr.index))
    if isinstance(expr, Cast):
        return ("cast", expr.dtype.name, id(expr.a))
    if isinstance(expr, Unary):
        return ("unary", expr.op, id(expr.a))
    if isinstance(expr, Select):
        return ("select", id(expr.cond), id(expr.a), id(expr.b))
    if isinstance(expr, Intrin):
        return ("intrin", expr.name, *map(id, expr.args))
    return id(expr)


def simplify(expr: Expr) -> Expr:
    """The canonical form of an expression; the same object if it is canonical already."""
    return Simplifier().expr(expr)


def simplify_stmt(stmt: Stmt) -> Stmt:
    """Simplify every expression, knowing loop bounds; drop loops of one turn and decided Ifs."""
    simplifier = Simplifier()
    for part in visit(stmt):  # parents first: an extent may depend on outer variables
        if isinstance(part, For):
            _enter_loop(part, simplifier)
        elif isinstance(part, Let):
            _enter_let(part, simplifier)
    return simplifier.walker.stmt(stmt)


def _enter_loop(loop: For, simplifier: Simplifier) -> None:
    extent = simplifier.expr(loop.extent)
    _, most = simplifier.interval(extent)
    if isinstance(extent, Const) and extent.value == 1 and loop.var not in simplifier.values:
        simplifier.values[loop.var] = simplifier.number(0, loop.var.dtype)
    _widen(simplifier, loop.var, (0, max(0, most - 1)))
    last = simplifier.sum(extent).plus(Sum({}, -1))
    known = simplifier.last.setdefault(loop.var, last)
    if known != last:
        simplifier.last[loop.var] = None


def _enter_let(let: Let, simplifier: Simplifier) -> None:
    if let.value.dtype.is_int:
        _widen(simplifier, let.var, simplifier.interval(simplifier.expr(let.value)))


def _widen(simplifier: Simplifier, var: Var, interval: Interval) -> None:
    """A Var bound at several places has the union of their ranges."""
    known = simplifier.interval.ranges.get(var, interval)
    union = (min(known[0], interval[0]), max(known[1], interval[1]))
    simplifier.interval.ranges[var] = union


def linear(expr: Expr) -> tuple[dict[Expr, int], int]:
    """An integer expression as ({atom: coefficient}, constant), simplified first.

    Atoms are Vars, and whatever else is not a sum; equal atoms are one object.
    """
    simplifier = Simplifier()
    terms = simplifier.sum(simplifier.expr(expr))
    return dict(terms.terms), terms.constant


def depends_on(expr: Expr, var: Var) -> bool:
    """Whether `var` occurs in `expr`."""
    return any(part is var for part in visit(expr))
