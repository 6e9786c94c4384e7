"""Whether a node obeys the rules of the IR: a broken one ends here and not in generated code.

In: a PrimFunc, Group, Function or whole module. Out: nothing, or InvalidIR that names the broken
rule and where. Checks scope (everything is bound once, before use, and used inside), types
(operands agree, conditions are bool, indices are integers), ranks, and that kernels store only to
their own and their argument buffers. Never says what an operator's result type must be: that is
the op table's, which callers pass as `infer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sterna.base.dtype import BOOL, DType
from sterna.base.errors import InvalidIR
from sterna.ir.bounds import type_range
from sterna.ir.compute import Compute, Group
from sterna.ir.equal import equal
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
    const_value,
)
from sterna.ir.graph import Binding, Call, Function, IRModule, TensorType, Value
from sterna.ir.loop import Alloc, For, ForKind, If, Let, Prefetch, PrimFunc, Seq, Stmt, Store, Sync
from sterna.ir.printer import to_text
from sterna.ir.simplify import simplify

SCOPES = ("global", "scratch", "shared", "local", "register")
_BITWISE = frozenset(("&", "|", "^", "<<", ">>"))
_LOGICAL = frozenset(("and", "or"))

Infer = Callable[[Call], Sequence[TensorType]]


class _Checker:
    """One kernel: what is in scope, and where we are, for messages."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.vars: set[Var] = set()
        self.buffers: set[Buffer] = set()
        self.ended: set[Var | Buffer] = set()  # was in scope once
        self.types: dict[Expr, DType] = {}  # of expressions checked in the scope that now holds
        self.implicit_dims = False
        self.threads = 0  # THREAD loops around here

    def fail(self, rule: str, node: Expr | Stmt | None = None) -> InvalidIR:
        shown = "" if node is None else f", in: {_shown(node)}"
        return InvalidIR(f"{self.where}: {rule}{shown}")

    # Scope.

    def bind(self, item: Var | Buffer) -> None:
        if item in self.vars or item in self.buffers:
            raise self.fail(f"{item.name} is bound twice; bind a fresh one")
        if isinstance(item, Var):
            self.check_var(item)
            self.vars.add(item)
        else:
            self.check_buffer(item)
            self.buffers.add(item)

    def leave(self, item: Var | Buffer) -> None:
        """End a scope; what was learnt of expressions that may use it is forgotten."""
        self.ended.add(item)
        self.vars.discard(item)
        self.buffers.discard(item)
        self.types.clear()

    def check_var(self, var: Var) -> None:
        # lo..lo-1 is the index of a loop without turns
        if var.lo is not None and var.hi is not None and var.hi < var.lo - 1:
            raise self.fail(f"{var.name} has bounds {var.lo}..{var.hi}, which hold no value")

    def check_buffer(self, buffer: Buffer) -> None:
        if buffer.scope not in SCOPES:
            known = ", ".join(SCOPES)
            raise self.fail(f"buffer {buffer.name} is in scope {buffer.scope!r}; known: {known}")
        self.integers(buffer.shape, f"the shape of {buffer.name}")

    # Expressions.

    def integers(self, exprs: Iterable[Expr], what: str) -> None:
        for expr in exprs:
            if not self.type(expr).is_int:
                raise self.fail(f"{what} must be integers, not {self.type(expr)}", expr)

    def type(self, expr: Expr) -> DType:
        """The dtype of an expression that keeps the rules."""
        found = self.types.get(expr)
        if found is None:
            found = self.types[expr] = self.check(expr)
        return found

    def check(self, expr: Expr) -> DType:
        if isinstance(expr, Var):
            return self.variable(expr)
        if isinstance(expr, Const):
            return self.constant(expr)
        if isinstance(expr, Binary):
            return self.binary(expr)
        if isinstance(expr, Unary):
            return self.unary(expr)
        if isinstance(expr, Cast):
            self.type(expr.a)
            return expr.dtype
        if isinstance(expr, Load):
            self.access(expr.buffer, expr.index, expr)
            return expr.buffer.dtype
        if isinstance(expr, Select):
            return self.select(expr)
        if isinstance(expr, Intrin):
            return self.intrin(expr)
        raise self.fail(f"{type(expr).__name__} is not an expression")

    def variable(self, var: Var) -> DType:
        if var not in self.vars:
            if not self.implicit_dims or var in self.ended:
                raise self.fail(f"variable {var.name} is used where it is not bound")
            self.bind(var)
        return var.dtype

    def constant(self, const: Const) -> DType:
        value, dtype = const.value, const.dtype
        kind = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        expected = "int" if dtype.is_int else dtype.kind
        if kind != expected:
            raise self.fail(f"the constant {value!r} is not of type {dtype}")
        least, most = type_range(dtype)
        if dtype.is_int and not least <= value <= most:
            raise self.fail(f"the constant {value} is out of the range of {dtype}")
        return dtype

    def same(self, exprs: Sequence[Expr], whole: Expr) -> DType:
        types = [self.type(expr) for expr in exprs]
        if any(dtype != types[0] for dtype in types):
            raise self.fail(f"operands differ in type: {', '.join(map(str, types))}", whole)
        return types[0]

    def binary(self, expr: Binary) -> DType:
        row = BINARY.get(expr.op)
        if row is None:
            raise self.fail(f"{expr.op!r} is not a binary operator")
        dtype = self.same((expr.a, expr.b), expr)
        if (expr.op in _LOGICAL) != (dtype == BOOL) and expr.op not in ("==", "!=", "&", "|", "^"):
            raise self.fail(f"{expr.op!r} does not apply to {dtype}", expr)
        if expr.op in _BITWISE and dtype.is_float:
            raise self.fail(f"{expr.op!r} does not apply to {dtype}", expr)
        if expr.op == "/" and not dtype.is_float:
            raise self.fail(f"'/' divides floats, and {dtype} is divided by '//'", expr)
        return BOOL if row.compares or expr.op in _LOGICAL else dtype

    def unary(self, expr: Unary) -> DType:
        if expr.op not in UNARY:
            raise self.fail(f"{expr.op!r} is not a unary operator")
        dtype = self.type(expr.a)
        fits = {"not": dtype == BOOL, "neg": dtype != BOOL, "abs": dtype != BOOL}
        if not fits.get(expr.op, dtype.is_int if expr.op == "invert" else dtype.is_float):
            raise self.fail(f"{expr.op!r} does not apply to {dtype}", expr)
        return dtype

    def select(self, expr: Select) -> DType:
        if self.type(expr.cond) != BOOL:
            raise self.fail(f"a condition must be bool, not {self.type(expr.cond)}", expr)
        return self.same((expr.a, expr.b), expr)

    def intrin(self, expr: Intrin) -> DType:
        if expr.name not in INTRINSICS:
            raise self.fail(f"{expr.name!r} is not an intrinsic; known: {', '.join(INTRINSICS)}")
        arity = INTRINSICS[expr.name].arity
        if len(expr.args) != arity:
            raise self.fail(f"{expr.name} takes {arity} arguments, not {len(expr.args)}")
        dtype = self.same(expr.args, expr)
        return INTRINSICS[expr.name].result or dtype

    def access(self, buffer: Buffer, index: Sequence[Expr], whole: Expr | Stmt) -> None:
        if buffer not in self.buffers:
            raise self.fail(f"buffer {buffer.name} is used where it is not known", whole)
        if len(index) != len(buffer.shape):
            rank = len(buffer.shape)
            raise self.fail(f"{buffer.name} has {rank} dimensions, not {len(index)}", whole)
        self.integers(index, f"indices of {buffer.name}")

    # Statements.

    def stmt(self, stmt: Stmt) -> None:
        if isinstance(stmt, For):
            self.integers([stmt.extent], f"the extent of loop {stmt.var.name}")
            if not stmt.var.dtype.is_int:
                raise self.fail(f"loop variable {stmt.var.name} must be an integer")
            self.loop(stmt)
        elif isinstance(stmt, Store):
            self.store(stmt)
        elif isinstance(stmt, Seq):
            for part in stmt.stmts:
                self.stmt(part)
        elif isinstance(stmt, Let):
            if self.type(stmt.value) != stmt.var.dtype:
                value = self.type(stmt.value)
                raise self.fail(f"{stmt.var.name} is {stmt.var.dtype}, its value {value}")
            self.inside(stmt.var, stmt.body)
        elif isinstance(stmt, If):
            self.branch(stmt)
        elif isinstance(stmt, Alloc):
            if stmt.buffer.scope == "global":
                raise self.fail(f"{stmt.buffer.name} is allocated, and so cannot be global")
            self.inside(stmt.buffer, stmt.body)
        elif isinstance(stmt, Prefetch):
            self.type(stmt.place)
        elif not isinstance(stmt, Sync):
            raise self.fail(f"{type(stmt).__name__} is not a statement")
        elif self.threads:
            raise self.fail("a sync stands inside a thread loop, whose turns cannot wait")

    def loop(self, stmt: For) -> None:
        threads = stmt.kind is ForKind.THREAD
        if threads and const_value(stmt.extent) is None:
            raise self.fail(
                f"thread loop {stmt.var.name} must have a number of turns that is known"
            )
        if stmt.kind is ForKind.PARALLEL and self.threads:
            raise self.fail(f"parallel loop {stmt.var.name} stands inside a thread loop")
        self.threads += threads
        self.inside(stmt.var, stmt.body)
        self.threads -= threads

    def inside(self, item: Var | Buffer, body: Stmt) -> None:
        self.bind(item)
        self.stmt(body)
        self.leave(item)

    def store(self, stmt: Store) -> None:
        self.access(stmt.buffer, stmt.index, stmt)
        value = self.type(stmt.value)
        if value != stmt.buffer.dtype:
            raise self.fail(f"{value} is stored to a buffer of {stmt.buffer.dtype}", stmt)

    def branch(self, stmt: If) -> None:
        if self.type(stmt.cond) != BOOL:
            raise self.fail(f"a condition must be bool, not {self.type(stmt.cond)}", stmt.cond)
        self.stmt(stmt.then)
        if stmt.orelse is not None:
            self.stmt(stmt.orelse)

    # Computes.

    def compute(self, node: Compute) -> None:
        if len(node.axes) != len(node.out.shape):
            rank = len(node.out.shape)
            raise self.fail(f"compute {node.name} has {len(node.axes)} axes for {rank} dimensions")
        if (node.combine is None) != (not node.over):
            raise self.fail(f"compute {node.name} needs both reduction axes and a combine, or none")
        if node.combine is not None and node.combine.op not in BINARY:
            raise self.fail(f"compute {node.name} combines by {node.combine.op!r}, no operator")
        if node.combine is None and node.start is not None:
            raise self.fail(f"compute {node.name} has a start, but combines nothing")
        axes = (*node.axes, *node.over)
        self.integers((axis.extent for axis in axes), f"the extents of compute {node.name}")
        for axis in axes:
            if not axis.var.dtype.is_int:
                raise self.fail(f"axis {axis.name} must be an integer")
            self.bind(axis.var)
        if self.type(node.body) != node.out.dtype:
            body = self.type(node.body)
            raise self.fail(f"compute {node.name} is {node.out.dtype}, its body {body}", node.body)
        for axis in node.over:
            self.leave(axis.var)
        if node.start is not None and self.type(node.start) != node.out.dtype:
            start = self.type(node.start)
            raise self.fail(
                f"compute {node.name} is {node.out.dtype}, its start {start}", node.start
            )
        for axis in node.axes:
            self.leave(axis.var)
        self.bind(node.out)


def _shown(node: Expr | Stmt) -> str:
    text = to_text(node)
    return text if len(text) <= 120 else f"{text[:117]}..."


def verify_primfunc(func: PrimFunc) -> None:
    """Check a kernel. Raises InvalidIR naming the rule it breaks."""
    checker = _Checker(f"kernel {func.name}")
    for var in func.dims:
        if not var.dtype.is_int:
            raise checker.fail(f"dim {var.name} must be an integer, not {var.dtype}")
        checker.bind(var)
    for buffer in func.params:
        checker.bind(buffer)
    _distinct(checker.where, "parameters", [b.name for b in func.params])
    checker.stmt(func.body)


def verify_group(group: Group) -> None:
    """Check a group of computes. Raises InvalidIR naming the rule it breaks."""
    checker = _Checker(f"group {group.name}")
    checker.implicit_dims = True
    for buffer in group.inputs:
        checker.bind(buffer)
    names = [b.name for b in group.inputs] + [c.name for c in group.computes]
    _distinct(checker.where, "buffers", names)
    for compute in group.computes:
        checker.compute(compute)
    made = {compute.out for compute in group.computes}
    for buffer in group.outputs:
        if buffer not in made:
            raise checker.fail(f"output {buffer.name} is computed by none of its computes")


def _distinct(where: str, plural: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidIR(f"{where}: two {plural} are called {twice[0]}")


class _Graph:
    """One function: the values defined so far, and the functions that it may call."""

    def __init__(self, func: Function, functions: Mapping[str, Function]) -> None:
        self.func = func
        self.functions = functions
        self.checker = _Checker(f"function {func.name}")
        self.known: set[Value] = set()

    def define(self, values: Iterable[Value]) -> None:
        for value in values:
            if value in self.known:
                raise self.checker.fail(f"{value.name} is defined twice")
            self.checker.integers(value.shape, f"the shape of {value.name}")
            self.known.add(value)

    def binding(self, binding: Binding, infer: Infer | None) -> None:
        call = binding.call
        for value in call.args:
            if value not in self.known:
                raise self.checker.fail(f"{call.op} uses {value.name}, which is not defined yet")
        _distinct(self.checker.where, f"attributes of {call.op}", [name for name, _ in call.attrs])
        called = self.functions.get(call.op)
        if called is not None:
            self.types(f"{call.op} takes", call.args, [p.type for p in called.params])
            self.types(f"{call.op} gives", binding.outs, [r.type for r in called.results])
        elif infer is not None:
            self.types(f"{call.op} gives", binding.outs, infer(call))

    def types(self, what: str, values: Sequence[Value], types: Sequence[TensorType]) -> None:
        if len(values) != len(types):
            raise self.checker.fail(f"{what} {len(types)} tensors, not {len(values)}")
        for value, expected in zip(values, types, strict=True):
            if not _same_type(value.type, expected):
                found = _type_text(value.type)
                raise self.checker.fail(f"{what} {_type_text(expected)}, {value.name} is {found}")


def verify_function(
    func: Function,
    dims: Iterable[Var] | None = None,
    infer: Infer | None = None,
    functions: Mapping[str, Function] | None = None,
) -> None:
    """Check a graph function; `dims` are all that its shapes may use, when given.

    `infer` gives the types of an operator's results, to be compared with those of the binding;
    a call of one of `functions` is compared with that function.
    """
    graph = _Graph(func, functions or {})
    graph.checker.implicit_dims = dims is None
    for var in dims or ():
        graph.checker.bind(var)
    graph.define((*func.params, *func.weights))
    for binding in func.bindings:
        graph.binding(binding, infer)
        graph.define(binding.outs)
    for value in func.results:
        if value not in graph.known:
            raise graph.checker.fail(f"result {value.name} is defined nowhere in it")
    _distinct(graph.checker.where, "weights", [weight.name for weight in func.weights])


def _same_type(a: TensorType, b: TensorType) -> bool:
    same = a.dtype == b.dtype and len(a.shape) == len(b.shape)
    return same and all(map(_same_extent, a.shape, b.shape))


def _same_extent(a: Expr, b: Expr) -> bool:
    return a is b or equal(a, b) or const_value(simplify(Binary("-", a, b))) == 0


def _type_text(kind: TensorType) -> str:
    return f"{kind.dtype}[{', '.join(map(to_text, kind.shape))}]"


def verify(module: IRModule, infer: Infer | None = None) -> None:
    """Check a whole module. Raises InvalidIR naming the function and the rule it breaks."""
    _distinct("module", "dims", [var.name for var in module.dims])
    if module.entry not in module.functions:
        known = ", ".join(module.functions)
        raise InvalidIR(f"module: its entry {module.entry!r} is no function of it; known: {known}")
    for name, func in module.functions.items():
        if name != func.name:
            raise InvalidIR(f"module: function {func.name} is entered as {name}")
        verify_function(func, module.dims, infer, module.functions)
        _check_calls(module, func, (name,))
    _check_weights(module)


def _check_calls(module: IRModule, func: Function, path: tuple[str, ...]) -> None:
    """No function calls itself, however indirectly."""
    for op in dict.fromkeys(binding.call.op for binding in func.bindings):
        if op in path:
            raise InvalidIR(f"function {op}: it calls itself ({' -> '.join((*path, op))})")
        if op in module.functions:
            _check_calls(module, module.functions[op], (*path, op))


def _check_weights(module: IRModule) -> None:
    """Constants are read with their own shape."""
    for func in module.functions.values():
        for weight in func.weights:
            array = module.constants.get(weight.name)
            if array is not None and not _fits(array.shape, weight.shape):
                raise InvalidIR(
                    f"function {func.name}: constant {weight.name} has shape {array.shape}, and is"
                    f" read as {_type_text(weight.type)}"
                )


def _fits(shape: tuple[int, ...], declared: tuple[Expr, ...]) -> bool:
    return len(shape) == len(declared) and all(
        const_value(extent) in (None, size) for extent, size in zip(declared, shape, strict=True)
    )
