"""Reads expressions and statements from Python syntax trees; the lower half of `parser`.

In: nodes of Python's `ast`, and the names in force. Out: Exprs and Stmts, built as written,
nothing folded. Whatever is not in the grammar raises InvalidIR with its line. Knows nothing of
kernels and graphs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from sterna.base.dtype import BOOL, DTYPES, I32, DType
from sterna.base.errors import InvalidIR
from sterna.ir.bounds import type_range
from sterna.ir.compute import axis
from sterna.ir.expr import (
    BINARY,
    INTRINSICS,
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
)
from sterna.ir.graph import Value
from sterna.ir.loop import Alloc, For, If, Let, Prefetch, Seq, Stmt, Store, Sync
from sterna.ir.printer import LOOPS, RESERVED, context_of, literal_dtype

Named = Var | Buffer | Value
Scope = Mapping[str, Named]
T = TypeVar("T")
N = TypeVar("N", bound=ast.AST)

_INFIX: dict[type[ast.AST], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
    ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==", ast.NotEq: "!=",
    ast.USub: "neg", ast.Invert: "invert",
}  # fmt: skip
_PAIRS = {row.symbol: op for op, row in BINARY.items() if not row.precedence}
_SINGLES = {row.symbol if not row.precedence else op: op for op, row in UNARY.items()}
_KINDS = {text: kind for kind, text in LOOPS.items()}


def fail(node: ast.AST, message: str) -> NoReturn:
    raise InvalidIR(f"line {getattr(node, 'lineno', 1)}: {message}")


def source(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."


def expect(node: ast.AST, kind: type[N], what: str) -> N:
    if not isinstance(node, kind):
        fail(node, f"{source(node)!r} stands where {what} is expected")
    return node


def call_name(node: ast.AST) -> str:
    """The name a call calls; empty for anything that is no call of a name."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def arguments_of(call: ast.Call, least: int, most: int | None = None) -> list[ast.expr]:
    most = least if most is None else most
    if call.keywords or not least <= len(call.args) <= most:
        fail(call, f"{source(call.func)} takes {least} to {most} positional arguments")
    return call.args


def literal(node: ast.AST) -> int | float | bool | None:
    """The value of a bare literal, None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        return node.value
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = literal(node.operand)
        nested = isinstance(node.operand, ast.UnaryOp)
        return None if value is None or isinstance(value, bool) or nested else -value
    return None


def const(node: ast.AST, value: int | float | bool, dtype: DType) -> Const:
    if dtype.is_float != isinstance(value, float) or (dtype == BOOL) != isinstance(value, bool):
        fail(node, f"{value!r} is not a literal of type {dtype}")
    if dtype.is_int and not type_range(dtype)[0] <= value <= type_range(dtype)[1]:
        fail(node, f"{value} is out of the range of {dtype}")
    return Const(value, dtype)


def text_of(node: ast.AST) -> str:
    constant = expect(node, ast.Constant, "a string")
    if not isinstance(constant.value, str):
        fail(node, f"{source(node)!r} stands where a string is expected")
    return constant.value


def dtype_of(node: ast.AST) -> DType:
    name = expect(node, ast.Name, "a dtype").id
    return DTYPES[name] if name in DTYPES else fail(node, f"dtype {name!r} is not known")


def items_of(node: ast.AST) -> list[ast.expr]:
    """The elements of an index: a tuple's, or the one expression."""
    if isinstance(node, ast.Tuple):
        return node.elts
    assert isinstance(node, ast.expr)
    return [node]


def _bound_name(node: ast.stmt) -> str | None:
    """The name a Let or Alloc binds, None for other statements."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target: ast.expr = node.targets[0]
    elif isinstance(node, ast.AnnAssign):
        target = node.target
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


class BlockParser:
    """Names in force, and one method for each construct of the grammar."""

    def __init__(self, scope: Scope) -> None:
        self.names: dict[str, Named] = dict(scope)

    # Names.

    def define(self, node: ast.AST, name: str, item: Named) -> None:
        if name in self.names:
            fail(node, f"{name} is already defined")
        if name in RESERVED:
            fail(node, f"{name} is a literal and cannot be a name")
        self.names[name] = item

    def look_up(self, node: ast.AST, kind: type[T], what: str) -> T:
        name = expect(node, ast.Name, what).id
        found = self.names.get(name)
        if found is None:
            fail(node, f"{name} is not defined here; known: {', '.join(self.names) or 'nothing'}")
        if not isinstance(found, kind):
            fail(node, f"{name} is no {what}")
        return found

    def inside(self, parse: Callable[[], T]) -> T:
        """Parse with names that end with the construct."""
        outer = dict(self.names)
        result = parse()
        self.names = outer
        return result

    # Expressions.

    def expr(self, node: ast.AST, context: DType | None = None) -> Expr:
        value = literal(node)
        if value is not None:
            return const(node, value, literal_dtype(value, context))
        if isinstance(node, ast.Name):
            return self.look_up(node, Var, "variable")
        if isinstance(node, ast.BinOp) and type(node.op) in _INFIX:
            return Binary(_INFIX[type(node.op)], *self.together([node.left, node.right]))
        if isinstance(node, ast.Compare):
            return self.comparison(node)
        if isinstance(node, ast.UnaryOp) and type(node.op) in _INFIX:
            return Unary(_INFIX[type(node.op)], self.expr(node.operand))
        if isinstance(node, ast.Subscript):
            return Load(self.look_up(node.value, Buffer, "buffer"), self.index(node.slice))
        if isinstance(node, ast.Call):
            return self.call_expr(node)
        fail(node, f"{source(node)!r} is not an expression of the IR")

    def together(self, nodes: Sequence[ast.expr]) -> list[Expr]:
        """Operands of one operation: bare literals take the type of the first other operand."""
        parsed = [None if literal(node) is not None else self.expr(node) for node in nodes]
        context = context_of(expr for expr in parsed if expr is not None)
        return [
            self.expr(node, context) if expr is None else expr
            for node, expr in zip(nodes, parsed, strict=True)
        ]

    def comparison(self, node: ast.Compare) -> Expr:
        if len(node.ops) != 1 or type(node.ops[0]) not in _INFIX:
            fail(node, f"{source(node)!r} is not one of the comparisons < <= == !=")
        return Binary(_INFIX[type(node.ops[0])], *self.together([node.left, node.comparators[0]]))

    def index(self, node: ast.expr) -> tuple[Expr, ...]:
        return tuple(self.expr(item) for item in items_of(node))

    def call_expr(self, node: ast.Call) -> Expr:
        name = call_name(node)
        if name in DTYPES:
            return self.conversion(node, DTYPES[name])
        if name == "cast":
            to, value = arguments_of(node, 2)
            return Cast(dtype_of(to), self.expr(value))
        if name == "select":
            cond, *sides = arguments_of(node, 3)
            return Select(self.expr(cond), *self.together(sides))
        if name in _PAIRS:
            return Binary(_PAIRS[name], *self.together(arguments_of(node, 2)))
        if name in _SINGLES:
            return Unary(_SINGLES[name], self.expr(arguments_of(node, 1)[0]))
        if name in INTRINSICS:
            arguments = arguments_of(node, INTRINSICS[name].arity)
            return Intrin(name, tuple(self.together(arguments)))
        fail(node, f"{source(node.func)} is not a function of expressions")

    def conversion(self, node: ast.Call, dtype: DType) -> Expr:
        (inner,) = arguments_of(node, 1)
        value = literal(inner)
        return Cast(dtype, self.expr(inner)) if value is None else const(inner, value, dtype)

    def tensor(self, node: ast.AST) -> tuple[DType, tuple[Expr, ...], str]:
        """A type annotation: (dtype, shape, scope)."""
        scope = "global"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            scope, node = text_of(node.right), node.left
        if isinstance(node, ast.Subscript):
            return dtype_of(node.value), self.index(node.slice), scope
        return dtype_of(node), (), scope

    def dim(self, name: str, node: ast.AST) -> Var:
        if call_name(node) != "dim":
            fail(node, f"{name} needs a declaration such as dim(1, 512)")
        args = arguments_of(expect(node, ast.Call, "a dim"), 0, 3)
        dtype = dtype_of(args[2]) if len(args) == 3 else I32
        return Var(name, dtype, *(self.bound(arg) for arg in args[:2]))

    def bound(self, node: ast.expr) -> int | None:
        if isinstance(node, ast.Constant) and node.value is None:
            return None
        value = literal(node)
        if not isinstance(value, int) or isinstance(value, bool):
            fail(node, f"the bound {source(node)!r} is neither an integer nor None")
        return value

    # Statements.

    def block(self, nodes: Sequence[ast.stmt]) -> Stmt:
        stmts: list[Stmt] = []
        for position, node in enumerate(nodes):
            name = _bound_name(node)
            if name is not None:
                stmts.append(self.binding_stmt(name, node, nodes[position + 1 :]))
                break
            if not isinstance(node, ast.Pass):
                stmts.append(self.stmt(node))
        return stmts[0] if len(stmts) == 1 else Seq(tuple(stmts))

    def nested(self, nodes: Sequence[ast.stmt]) -> Stmt:
        return self.inside(lambda: self.block(nodes))

    def binding_stmt(self, name: str, node: ast.stmt, rest: Sequence[ast.stmt]) -> Stmt:
        """A Let or Alloc, whose body is the rest of its block."""
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        if node.value is None:
            fail(node, f"{name} is given no value")
        if call_name(node.value) == "alloc":
            buffer = self.allocation(name, expect(node.value, ast.Call, "an allocation"))
            self.define(node, name, buffer)
            return Alloc(buffer, self.block(rest))
        value = self.expr(node.value)
        dtype = dtype_of(node.annotation) if isinstance(node, ast.AnnAssign) else value.dtype
        var = Var(name, dtype)
        self.define(node, name, var)
        return Let(var, value, self.block(rest))

    def allocation(self, name: str, node: ast.Call) -> Buffer:
        scope, dtype, *shape = arguments_of(node, 2, 10)
        return Buffer(name, dtype_of(dtype), tuple(map(self.expr, shape)), text_of(scope))

    def stmt(self, node: ast.stmt) -> Stmt:
        if isinstance(node, ast.For) and not node.orelse:
            return self.loop(node)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            return self.store(node, node.targets[0])
        if isinstance(node, ast.If):
            orelse = self.nested(node.orelse) if node.orelse else None
            return If(self.expr(node.test), self.nested(node.body), orelse)
        if isinstance(node, ast.With) and [source(i) for i in node.items] == ["scope()"]:
            return self.nested(node.body)
        if isinstance(node, ast.Expr) and source(node) == "sync()":
            return Sync()
        if isinstance(node, ast.Expr) and call_name(node.value) == "prefetch":
            return self.prefetch(expect(node.value, ast.Call, "a prefetch"))
        fail(node, f"{source(node)!r} is not a statement of the IR")

    def prefetch(self, node: ast.Call) -> Stmt:
        place = self.expr(arguments_of(node, 1)[0])
        if not isinstance(place, Load):
            fail(node, "a prefetch names an element of a buffer")
        return Prefetch(place)

    def loop(self, node: ast.For) -> Stmt:
        name = expect(node.target, ast.Name, "a loop variable").id
        kind = _KINDS.get(call_name(node.iter))
        if kind is None:
            fail(node.iter, f"a loop runs over one of {', '.join(_KINDS)}")
        args = arguments_of(expect(node.iter, ast.Call, "a range"), 1, 2)
        extent = self.expr(args[0])
        dtype = dtype_of(args[1]) if len(args) == 2 else I32
        return self.inside(lambda: self.loop_body(node, name, dtype, extent))

    def loop_body(self, node: ast.For, name: str, dtype: DType, extent: Expr) -> Stmt:
        var = Var(name, dtype, lo=0, hi=axis(name, extent).var.hi)
        self.define(node.target, name, var)
        return For(var, extent, self.block(node.body), _KINDS[call_name(node.iter)])

    def store(self, node: ast.Assign, target: ast.Subscript) -> Stmt:
        if len(node.targets) != 1:
            fail(node, "a store has one target")
        buffer = self.look_up(target.value, Buffer, "buffer")
        return Store(buffer, self.index(target.slice), self.expr(node.value, buffer.dtype))
