"""The text form of the IRs: Python syntax, read back by `parser`; print then parse is identity.

In: any node. Out: text, with names made valid and distinct where they are in force at once; equal
names that do not overlap stay as they are. Sequences come out flat; `with scope():` closes a Let
or an allocation that does not run to the end of its block. Sharing is not shown. A literal is
bare where its type follows from the other operand, else `u32(7)`; a cast of a literal is
`cast(u32, 7)`. See docs of `parser` for the grammar.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import singledispatchmethod

import numpy as np

from sterna.base.dtype import BOOL, F32, I32, DType
from sterna.base.errors import InvalidIR
from sterna.ir.compute import MAX, SUM, UNIT_SUM, Axis, Combine, Compute, Group
from sterna.ir.equal import flat
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
)
from sterna.ir.graph import Attr, Binding, Call, Function, IRModule, Value
from sterna.ir.loop import Alloc, For, ForKind, If, Let, Prefetch, PrimFunc, Seq, Stmt, Store, Sync
from sterna.ir.rewrite import free_vars, visit

Node = Expr | Stmt | PrimFunc | Compute | Group | Function | IRModule
Named = Var | Buffer | Value

RESERVED = frozenset(keyword.kwlist) | {"inf", "nan"}
LOOPS = {
    ForKind.SERIAL: "range",
    ForKind.PARALLEL: "parallel",
    ForKind.VECTOR: "vector",
    ForKind.UNROLL: "unroll",
    ForKind.THREAD: "thread",
    ForKind.MATRIX: "matrix",
}
_ATOM, _UNARY = 100, 90


def literal_dtype(value: float | int | bool, context: DType | None) -> DType:
    """The type of a bare literal beside an operand of type `context`."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return context if context is not None and context.is_int else I32
    return context if context is not None and context.is_float else F32


def _python_name(name: str) -> str:
    clean = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
    clean = f"_{clean}" if clean[0].isdigit() else clean
    return f"{clean}_" if clean in RESERVED else clean


def _number(value: Attr | np.floating) -> str:
    if isinstance(value, bool | str | int):
        return repr(value)
    if isinstance(value, tuple):
        return repr(value)
    return repr(float(value)) if math.isfinite(value) else str(float(value))


class _Printer:
    """Names in force, and text for each kind of node."""

    def __init__(self) -> None:
        self.names: dict[Named, str] = {}

    # Names.

    def name(self, item: Named) -> str:
        """The name of something in force; something free takes one that stays."""
        return self.names.get(item) or self.bind(item)

    def bind(self, item: Named, name: str = "") -> str:
        base = _python_name(name or item.name)
        taken, name, count = set(self.names.values()), base, 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        self.names[item] = name
        return name

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Names bound inside are free again afterwards."""
        outer = dict(self.names)
        yield
        self.names = outer

    # Expressions.

    def expr(self, node: Expr, context: DType | None = None) -> str:
        return self.operand(node, 0, context)

    def exprs(self, nodes: Iterable[Expr], context: DType | None = None) -> str:
        return ", ".join(self.expr(node, context) for node in nodes)

    def operand(self, node: Expr, least: int, context: DType | None = None) -> str:
        text, precedence = self.precise(node, context)
        return text if precedence >= least else f"({text})"

    def precise(self, node: Expr, context: DType | None) -> tuple[str, int]:
        """Text, and how strongly it binds."""
        if isinstance(node, Var):
            return self.name(node), _ATOM
        if isinstance(node, Const):
            return self.const(node, context)
        if isinstance(node, Binary):
            return self.binary(node)
        if isinstance(node, Unary):
            return self.unary(node)
        if isinstance(node, Cast):
            plain = not isinstance(node.a, Const)
            head = f"{node.dtype}(" if plain else f"cast({node.dtype}, "
            return f"{head}{self.expr(node.a)})", _ATOM
        if isinstance(node, Load):
            return f"{self.name(node.buffer)}[{self.index(node.index)}]", _ATOM
        if isinstance(node, Select):
            a, b = self.pair(node.a, node.b)
            return f"select({self.expr(node.cond)}, {a}, {b})", _ATOM
        if isinstance(node, Intrin):
            context = context_of(node.args)
            return f"{node.name}({self.exprs(node.args, context)})", _ATOM
        raise InvalidIR(f"{type(node).__name__} has no text form: it is not an expression")

    def const(self, node: Const, context: DType | None) -> tuple[str, int]:
        value = node.value
        if node.dtype == BOOL:
            return str(bool(value)), _ATOM
        value = float(value) if node.dtype.is_float else int(value)
        text = _number(value)
        if literal_dtype(value, context) == node.dtype:
            return text, _ATOM if text[0] != "-" else _UNARY
        return f"{node.dtype}({text})", _ATOM

    def index(self, index: tuple[Expr, ...]) -> str:
        return self.exprs(index) or "()"

    def pair(self, a: Expr, b: Expr, least: tuple[int, int] = (0, 0)) -> tuple[str, str]:
        context = context_of((a, b))
        return self.operand(a, least[0], context), self.operand(b, least[1], context)

    def binary(self, node: Binary) -> tuple[str, int]:
        row = BINARY[node.op]
        if not row.precedence:
            a, b = self.pair(node.a, node.b)
            return f"{row.symbol}({a}, {b})", _ATOM
        left = row.precedence + 1 if row.compares else row.precedence
        a, b = self.pair(node.a, node.b, (left, row.precedence + 1))
        return f"{a} {row.symbol} {b}", row.precedence

    def unary(self, node: Unary) -> tuple[str, int]:
        row = UNARY[node.op]
        if not row.precedence:
            return f"{row.symbol}({self.expr(node.a)})", _ATOM
        if isinstance(node.a, Const):  # -5 is a literal
            return f"{node.op}({self.expr(node.a)})", _ATOM
        return f"{row.symbol}{self.operand(node.a, _UNARY)}", _UNARY

    def tensor(self, dtype: DType, shape: Sequence[Expr], scope: str = "global") -> str:
        extents = f"[{self.exprs(shape)}]" if shape else ""
        return f"{dtype}{extents}" + ("" if scope == "global" else f' @ "{scope}"')

    # Statements.

    @singledispatchmethod
    def lines(self, stmt: object) -> list[str]:
        raise InvalidIR(f"{type(stmt).__name__} has no text form: it is not a statement")

    def block(self, stmt: Stmt) -> list[str]:
        """The indented lines of a body."""
        with self.scope():
            return [f"    {line}" for line in self.lines(stmt) or ["pass"]]

    @lines.register
    def seq(self, stmt: Seq) -> list[str]:
        parts = list(flat(stmt))
        if not parts:
            return ["pass"]
        text: list[str] = []
        for part in parts[:-1]:
            closed = isinstance(part, Let | Alloc)
            text += ["with scope():", *self.block(part)] if closed else self.lines(part)
        return text + self.lines(parts[-1])

    @lines.register
    def loop(self, stmt: For) -> list[str]:
        extent = self.expr(stmt.extent)
        with self.scope():
            var = self.bind(stmt.var)
            dtype = "" if stmt.var.dtype == I32 else f", {stmt.var.dtype}"
            head = f"for {var} in {LOOPS[stmt.kind]}({extent}{dtype}):"
            return [head, *self.block(stmt.body)]

    @lines.register
    def store(self, stmt: Store) -> list[str]:
        target = f"{self.name(stmt.buffer)}[{self.index(stmt.index)}]"
        return [f"{target} = {self.expr(stmt.value, stmt.buffer.dtype)}"]

    @lines.register
    def let(self, stmt: Let) -> list[str]:
        value = self.expr(stmt.value)
        var = self.bind(stmt.var)
        dtype = "" if stmt.var.dtype == stmt.value.dtype else f": {stmt.var.dtype}"
        return [f"{var}{dtype} = {value}", *self.lines(stmt.body)]

    @lines.register
    def branch(self, stmt: If) -> list[str]:
        text = [f"if {self.expr(stmt.cond)}:", *self.block(stmt.then)]
        if stmt.orelse is not None:
            text += ["else:", *self.block(stmt.orelse)]
        return text

    @lines.register
    def alloc(self, stmt: Alloc) -> list[str]:
        shape = "".join(f", {self.expr(extent)}" for extent in stmt.buffer.shape)
        head = f'alloc("{stmt.buffer.scope}", {stmt.buffer.dtype}{shape})'
        return [f"{self.bind(stmt.buffer)} = {head}", *self.lines(stmt.body)]

    @lines.register
    def prefetch(self, stmt: Prefetch) -> list[str]:
        return [f"prefetch({self.expr(stmt.place)})"]

    @lines.register
    def sync(self, stmt: Sync) -> list[str]:
        return ["sync()"]

    # Kernels.

    def dims(self, dims: Iterable[Var]) -> list[str]:
        """Dims as keyword-only parameters, to be bound before what they shape."""
        declared = [f"{self.name(var)}: {dim_text(var)}" for var in dims]
        return ["*", *declared] if declared else []

    def buffers(self, buffers: Iterable[Buffer]) -> list[str]:
        texts = [(b, self.tensor(b.dtype, b.shape, b.scope)) for b in buffers]
        return [f"{self.bind(b)}: {text}" for b, text in texts]

    @lines.register
    def primfunc(self, func: PrimFunc) -> list[str]:
        dims = self.dims(func.dims)
        header = ", ".join(self.buffers(func.params) + dims)
        return ["@kernel", f"def {_python_name(func.name)}({header}):", *self.block(func.body)]

    @lines.register
    def group(self, group: Group) -> list[str]:
        exprs = [extent for buffer in group.inputs for extent in buffer.shape]
        for compute in group.computes:
            exprs += [*(a.extent for a in (*compute.axes, *compute.over)), *compute.values]
            exprs += compute.out.shape
        bound = {a.var for c in group.computes for a in (*c.axes, *c.over)}
        dims = self.dims(var for var in first_vars(exprs) if var not in bound)
        header = ", ".join(self.buffers(group.inputs) + dims)
        text = ["@group", f"def {_python_name(group.name)}({header}):"]
        for compute in group.computes:
            text.append(f"    {self.compute(compute)}")
        outputs = ", ".join(self.name(buffer) for buffer in group.outputs)
        return [*text, f"    return {outputs}".rstrip()]

    def axes(self, axes: Iterable[Axis], form: str) -> list[str]:
        extents = [(axis, self.expr(axis.extent)) for axis in axes]
        return [form.format(self.bind(axis.var), extent) for axis, extent in extents]

    def compute(self, node: Compute) -> str:
        shape = [self.expr(extent) for extent in node.out.shape]
        extents = [self.expr(axis.extent) for axis in node.axes]
        declared = node.out.shape if shape != extents else ()
        annotation = self.tensor(node.out.dtype, declared, node.out.scope)
        with self.scope():
            axes = ", ".join(self.axes(node.axes, "{}:{}")) or "()"
            over = " ".join(self.axes(node.over, "for {} in range({})"))
            value = self.expr(node.body, None if node.over else node.out.dtype)
            start = "" if node.start is None else self.expr(node.start, node.out.dtype)
        if node.combine is not None and node.over:
            value = _reduction(node.combine, f"{value} {over}", start)
        elif node.combine is not None or node.over or start:
            raise InvalidIR(f"compute {node.name} needs both reduction axes and a combine, or none")
        return f"{self.bind(node.out)}[{axes}]: {annotation} = {value}"

    @lines.register
    def one_compute(self, node: Compute) -> list[str]:
        return [self.compute(node)]

    # Graphs.

    def values(self, values: Iterable[Value]) -> list[str]:
        texts = [(v, self.tensor(v.dtype, v.shape)) for v in values]
        return [f"{self.bind(v)}: {text}" for v, text in texts]

    def call(self, call: Call) -> str:
        attrs = [f"{name}={_number(value)}" for name, value in call.attrs]
        return f"{_dotted(call.op)}({', '.join([*map(self.name, call.args), *attrs])})"

    def binding(self, binding: Binding) -> str:
        call = self.call(binding.call)
        types = [self.tensor(v.dtype, v.shape) for v in binding.outs]
        names = [self.bind(v) for v in binding.outs]
        if len(names) == 1:
            return f"{names[0]}: {types[0]} = {call}"
        return f"{', '.join(names)} = outs({', '.join([call, *types])})" if names else call

    @lines.register
    def function(self, func: Function) -> list[str]:
        values = [*func.params, *func.weights, *(v for b in func.bindings for v in b.outs)]
        used = first_vars(extent for value in values for extent in value.shape)
        dims = self.dims(var for var in used if var not in self.names)
        header = ", ".join(self.values(func.params) + dims)
        text = [f"@{'primitive' if func.primitive else 'function'}"]
        text.append(f"def {_identifier(func.name)}({header}):")
        for weight in func.weights:
            kind = self.tensor(weight.dtype, weight.shape)
            short = self.bind(weight, ".".join(weight.name.split(".")[-2:]))
            text.append(f"    {short} = weight({weight.name!r}, {kind})")
        text += [f"    {self.binding(binding)}" for binding in func.bindings]
        results = ", ".join(map(self.name, func.results))
        return [*text, f"    return {results}".rstrip()]

    @lines.register
    def module(self, module: IRModule) -> list[str]:
        text = [f"{self.bind(var)} = {dim_text(var)}" for var in module.dims]
        for name, array in module.constants.items():
            numbers = ", ".join(map(_number, np.ravel(array)))
            text.append(f"constant({name!r}, {array.shape}, [{numbers}])")
        for name, parts in module.fused.items():
            text.append(f"fused({', '.join(map(repr, (name, *parts)))})")
        for name, func in module.functions.items():
            if name != func.name:
                raise InvalidIR(f"function {func.name} is entered in its module as {name}")
            with self.scope():
                text += ["", *self.lines(func)]
        return [*text, "", f"entry({module.entry!r})"]


def context_of(nodes: Iterable[Expr]) -> DType | None:
    """The type that bare literals among operands take: that of the first which is no literal."""
    return next((node.dtype for node in nodes if not isinstance(node, Const)), None)


def dim_text(var: Var) -> str:
    """A dim's declaration, as short as its bounds and type allow."""
    if var.dtype != I32:
        return f"dim({var.lo}, {var.hi}, {var.dtype})"
    return f"dim({var.lo}, {var.hi})" if var.lo is not None or var.hi is not None else "dim()"


def first_vars(exprs: Iterable[Expr]) -> list[Var]:
    """The variables of expressions, in order of appearance."""
    return list(dict.fromkeys(part for e in exprs for part in visit(e) if isinstance(part, Var)))


def _reduction(combine: Combine, generator: str, start: str) -> str:
    begun = f", start={start}" if start else ""
    for name, known in (("sum", SUM), ("max", MAX), ("unit_sum", UNIT_SUM)):
        if combine == known:
            return f"{name}(({generator}){begun})" if start else f"{name}({generator})"
    return f"reduce({combine.op!r}, {_number(combine.identity)}, ({generator}){begun})"


def _identifier(name: str) -> str:
    if name != _python_name(name):
        raise InvalidIR(f"function {name!r} has no text form: calls name it, so it must be a name")
    return name


def _dotted(name: str) -> str:
    for part in name.split("."):
        _identifier(part)
    return name


def _bind_free(printer: _Printer, node: Stmt | Compute) -> None:
    """Give what is free its names first, so that no name bound inside can be one of them."""
    if isinstance(node, Compute):
        exprs = [a.extent for a in (*node.axes, *node.over)] + [*node.values, *node.out.shape]
        bound = {a.var for a in (*node.axes, *node.over)}
        parts: list[Expr | Stmt] = [part for expr in exprs for part in visit(expr)]
        free = {part for part in parts if isinstance(part, Var)} - bound
    else:
        parts, free = list(visit(node)), free_vars(node)
    own = {part.buffer for part in parts if isinstance(part, Alloc)}
    for part in parts:
        if isinstance(part, Var) and part in free:
            printer.name(part)
        elif isinstance(part, Load | Store) and part.buffer not in own:
            printer.name(part.buffer)


def to_text(node: Node) -> str:
    """The text of any node; ends without a newline, but for a module.

    Raises InvalidIR for a tree that holds something else than IR nodes.
    """
    printer = _Printer()
    if isinstance(node, Expr):
        return printer.expr(node)
    if isinstance(node, Stmt | Compute):
        _bind_free(printer, node)
    text = "\n".join(printer.lines(node))
    return f"{text}\n" if isinstance(node, IRModule) else text
