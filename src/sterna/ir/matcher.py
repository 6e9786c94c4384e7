"""Compiles rewrite rules from text to one Python function for each operator.

In: `Rule` records. Out: a table (section, operator) -> function(algebra, expr) that returns the
replacement by the first rule that applies, or None. The functions call back into the simplifier
to take sums apart, to ask for bounds and to build results; see `Algebra`. Knows no rule itself.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sterna.base.dtype import BOOL, DType
from sterna.ir.bounds import Interval
from sterna.ir.expr import BINARY, UNARY, Binary, Const, Expr, Intrin, Select, Unary
from sterna.ir.linear import Sum
from sterna.ir.rules import Rule


class Algebra(Protocol):
    """What compiled rules ask of the simplifier."""

    def sum(self, expr: Expr) -> Sum: ...
    def interval(self, expr: Expr) -> Interval: ...
    def build(self, terms: Sum, dtype: DType) -> Expr: ...
    def number(self, value: int | float | bool, dtype: DType) -> Expr: ...
    def binary(self, op: str, a: Expr, b: Expr) -> Expr: ...
    def unary(self, op: str, a: Expr) -> Expr: ...
    def select(self, cond: Expr, a: Expr, b: Expr) -> Expr: ...
    def intrin(self, name: str, *args: Expr) -> Expr: ...


RuleFunction = Callable[[Algebra, Expr, DType], Expr | None]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where emission stands: nesting depth, and the wildcards bound so far."""

    depth: int
    bound: frozenset[str] = frozenset()

    def inside(self, *names: str) -> _Place:
        return _Place(self.depth + 1, self.bound.union(names))

    def knowing(self, *names: str) -> _Place:
        return replace(self, bound=self.bound.union(names))


_Then = Callable[[_Place], None]  # emits what follows once a pattern has matched

_NAMED = {row.symbol: op for op, row in (BINARY | UNARY).items() if not row.precedence}
_INFIX: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!=",
    ast.Gt: ">", ast.GtE: ">=", ast.USub: "neg", ast.Invert: "invert",
}  # fmt: skip


def _is_constant_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id[0] == "c" and node.id[1:].isdigit()


def _literal(node: ast.expr) -> bool | int | float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, bool | int | float) else None


def _operation(node: ast.expr) -> tuple[str, list[ast.expr]] | None:
    """(operator, operands) of a pattern; None for wildcards and literals."""
    if _literal(node) is not None:
        return None
    if isinstance(node, ast.BinOp):
        return _INFIX[type(node.op)], [node.left, node.right]
    if isinstance(node, ast.Compare):
        return _INFIX[type(node.ops[0])], [node.left, node.comparators[0]]
    if isinstance(node, ast.UnaryOp):
        return _INFIX[type(node.op)], [node.operand]
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        return _NAMED.get(name, name), node.args
    return None


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _summands(node.left) + _summands(node.right)
    return [node]


def _factor(node: ast.expr) -> tuple[ast.expr, str | None]:
    """A summand `atom * c` as (atom, "c"), any other as (itself, None)."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return node, None
    named = _is_constant_name(node.right)
    return (node.left, ast.unparse(node.right)) if named else (node, None)


def _rank(item: ast.expr) -> int:
    """Structured terms first, then splits, then constants; bare wildcards last."""
    if isinstance(item, ast.Name):
        return 2 if _is_constant_name(item) else 3
    atom, _ = _factor(item)
    return 1 if isinstance(atom, ast.Name) else 0


class _Emitter:
    """Writes the Python text of one rule: nested tests that end in a `return`.

    Emission is in continuation style: `then` emits what follows, once for each way to match.
    """

    def __init__(self, rule: Rule, lines: list[str]) -> None:
        self.exact = rule.section == "exact"
        self.lines = lines
        self.fresh = 0

    def name(self) -> str:
        self.fresh += 1
        return f"t{self.fresh}"

    def line(self, place: _Place, text: str) -> None:
        self.lines.append("    " * place.depth + text)

    def match(self, node: ast.expr, path: str, at: _Place, then: _Then) -> None:
        operation = _operation(node)
        if operation is None:
            self.leaf(node, path, at, then)
        elif operation[0] == "+" and self.exact:
            terms = self.name()
            self.line(at, f"{terms} = s.sum({path})")
            self.summands(sorted(_summands(node), key=_rank), terms, at, then)
        else:
            self.operation(*operation, path, at, then)

    def leaf(self, node: ast.expr, path: str, at: _Place, then: _Then) -> None:
        value = _literal(node)
        if value is not None:
            self.line(at, f"if type({path}) is Const and repr({path}.value) == {repr(value)!r}:")
            return then(at.inside())
        name = ast.unparse(node)
        if not _is_constant_name(node):
            return self.bind(name, path, "is", at, then)
        self.line(at, f"if type({path}) is Const:")
        return self.bind(name, f"{path}.value", "==", at.inside(), then)

    def bind(self, name: str, source: str, same: str, at: _Place, then: _Then) -> None:
        if name in at.bound:
            self.line(at, f"if {name} {same} {source}:")
            return then(at.inside())
        self.line(at, f"{name} = {source}")
        return then(at.knowing(name))

    def operation(
        self, op: str, operands: list[ast.expr], path: str, at: _Place, then: _Then
    ) -> None:
        kind, fields = _shape(op, path)
        self.line(at, f"if {kind}:")
        names = [self.name() for _ in operands]
        for name, source in zip(names, fields, strict=True):
            self.line(at.inside(), f"{name} = {source}")
        self.all(list(zip(operands, names, strict=True)), at.inside(), then)
        swapped = op in BINARY and BINARY[op].commutative
        if swapped and ast.dump(operands[0]) != ast.dump(operands[1]):
            self.all([(operands[0], names[1]), (operands[1], names[0])], at.inside(), then)

    def all(self, pairs: list[tuple[ast.expr, str]], at: _Place, then: _Then) -> None:
        """Match every pair; constants and wildcards before structure, which may depend on them."""
        if not pairs:
            return then(at)
        first = min(pairs, key=lambda pair: _operation(pair[0]) is not None)
        rest = [pair for pair in pairs if pair is not first]
        return self.match(*first, at, lambda place: self.all(rest, place, then))

    def summands(self, items: list[ast.expr], terms: str, at: _Place, then: _Then) -> None:
        """Match the summands of a pattern, in order, against what is left in `terms`."""
        if not items:  # without a bare wildcard, the pattern must use every term up
            self.line(at, f"if not {terms}.terms and not {terms}.constant:")
            return then(at.inside())
        item, rest = items[0], items[1:]
        left, text = self.name(), ast.unparse(item)
        if _is_constant_name(item):
            self.line(at, f"{text} = {terms}.constant")
            self.line(at, f"{left} = {terms}.drop_constant()")
            return self.summands(rest, left, at.knowing(text), then)
        if isinstance(item, ast.Name) and text in at.bound:
            self.line(at, f"{left} = {terms}.without(s.sum({text}))")
            self.line(at, f"if {left} is not None:")
            return self.summands(rest, left, at.inside(), then)
        if isinstance(item, ast.Name):
            self.line(at, f"{text} = s.build({terms}, d)")
            return then(at.knowing(text))
        atom, factor = _factor(item)
        if isinstance(atom, ast.Name) and factor is not None:
            return self.split(atom.id, factor, rest, terms, at, then)
        return self.term(atom, factor, rest, terms, at, then)

    def split(
        self, name: str, factor: str, rest: list[ast.expr], terms: str, at: _Place, then: _Then
    ) -> None:
        """`x * c + rest`: x takes all that c divides; an unbound c tries every stride."""
        if factor not in at.bound:
            self.line(at, f"for {factor} in {terms}.strides():")
            at = at.inside(factor)
        quotient, left = self.name(), self.name()
        self.line(at, f"{quotient}, {left} = {terms}.split({factor}) if {factor} else ({terms}, 0)")
        self.line(at, f"if {factor} and ({quotient}.terms or {quotient}.constant):")
        self.line(at.inside(), f"{name} = s.build({quotient}, d)")
        self.summands(rest, left, at.inside(name), then)

    def term(
        self,
        atom: ast.expr,
        factor: str | None,
        rest: list[ast.expr],
        terms: str,
        at: _Place,
        then: _Then,
    ) -> None:
        """A structured term: any term whose atom matches."""
        here, coefficient, left = self.name(), self.name(), self.name()
        self.line(at, f"for {here}, {coefficient} in {terms}.terms.items():")
        at = at.inside()

        def matched(place: _Place) -> None:
            self.line(place, f"{left} = {terms}.drop({here})")
            self.summands(rest, left, place, then)

        def known(place: _Place) -> None:
            self.match(atom, here, place, matched)

        if factor is not None:
            return self.bind(factor, coefficient, "==", at, known)
        self.line(at, f"if {coefficient} == 1:")
        return known(at.inside())


def _shape(op: str, path: str) -> tuple[str, list[str]]:
    """The test that `path` is this operation, and where its operands are."""
    if op == "select":
        return f"type({path}) is Select", [f"{path}.cond", f"{path}.a", f"{path}.b"]
    if op in BINARY:
        return f"type({path}) is Binary and {path}.op == {op!r}", [f"{path}.a", f"{path}.b"]
    if op in UNARY:
        return f"type({path}) is Unary and {path}.op == {op!r}", [f"{path}.a"]
    args = [f"{path}.args[{i}]" for i in range(3)]
    return f"type({path}) is Intrin and {path}.name == {op!r}", args


def _is_number(node: ast.expr) -> bool:
    """Whether a replacement is computed from constants alone."""
    names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
    return all(_is_constant_name(n) or n.id in ("min", "max") for n in names)


def _build(node: ast.expr) -> str:
    """The Python text that builds a replacement."""
    value = _literal(node)
    if isinstance(value, bool):
        return f"s.number({value}, BOOL)"
    if _is_number(node):
        return f"s.number({ast.unparse(node)}, d)"
    operation = _operation(node)
    if operation is None:
        return ast.unparse(node)
    op, operands = operation
    args = ", ".join(map(_build, operands))
    if op == "select":
        return f"s.select({args})"
    if op in BINARY:
        return f"s.binary({op!r}, {args})"
    return f"s.unary({op!r}, {args})" if op in UNARY else f"s.intrin({op!r}, {args})"


def _test(node: ast.expr) -> str:
    """The Python text that proves a condition; comparisons of wildcards go by their bounds."""
    if isinstance(node, ast.BoolOp):
        return " and ".join(map(_test, node.values))
    if not isinstance(node, ast.Compare):
        return ast.unparse(node)
    sides = [node.left, *node.comparators]
    pairs = zip(sides, node.ops, sides[1:])
    return " and ".join(f"{_end(a, 1)} {_INFIX[type(op)]} {_end(b, 0)}" for a, op, b in pairs)


def _end(node: ast.expr, end: int) -> str:
    if isinstance(node, ast.Name) and not _is_constant_name(node) and node.id != "bits":
        return f"s.interval({node.id})[{end}]"
    return f"({ast.unparse(node)})"


def _parse(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _emit(rule: Rule, lines: list[str]) -> None:
    def finish(at: _Place) -> None:
        if rule.condition:
            emitter.line(at, f"if {_test(_parse(rule.condition))}:")
            at = at.inside()
        emitter.line(at, f"return {_build(_parse(rule.replacement))}")

    emitter = _Emitter(rule, lines)
    lines.append(f"    # {rule}")
    emitter.match(_parse(rule.pattern), "e", _Place(1), finish)


def operator_of(rule: Rule) -> str:
    """The operator at the root of a rule's pattern."""
    operation = _operation(_parse(rule.pattern))
    assert operation is not None, f"rule {rule} has no operator at its root"
    return operation[0]


def compile_rules(rules: Iterable[Rule]) -> dict[tuple[str, str], RuleFunction]:
    """One function for each (section, operator), trying its rules in order."""
    lines: dict[tuple[str, str], list[str]] = {}
    for rule in rules:
        _emit(rule, lines.setdefault((rule.section, operator_of(rule)), []))
    return {key: _define(key, body) for key, body in lines.items()}


def _define(key: tuple[str, str], body: list[str]) -> RuleFunction:
    source = "\n".join(["def rule(s, e, d):", "    bits = d.bits", *body, "    return None"])
    names: dict[str, Any] = {
        "Const": Const, "Binary": Binary, "Unary": Unary, "Select": Select, "Intrin": Intrin,
        "BOOL": BOOL, "integer": lambda e: e.dtype.is_int,
    }  # fmt: skip
    exec(compile(source, f"<rules {key[0]} {key[1]}>", "exec"), names)
    compiled: RuleFunction = names["rule"]
    return compiled
