"""Structural equality and a stable digest, up to the names of what is bound.

In: any node of the IRs. Out: whether two are the same program, or the sha256 of one. Loop and
axis variables, Let-bound values, dims, parameters, allocations and intermediate tensors are
compared by where they are bound; kernels and functions may be called anything. Names count where
they connect to the outside: free variables and buffers, weights, constants, attributes, and the
functions of a module. Bounds count for dims and free variables only. Nested sequences are flat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from functools import singledispatchmethod

import numpy as np

from sterna.ir.compute import Axis, Compute, Group
from sterna.ir.expr import Binary, Buffer, Cast, Const, Expr, Intrin, Load, Select, Unary, Var
from sterna.ir.graph import Call, Function, IRModule, TensorType, Value
from sterna.ir.loop import Alloc, For, If, Let, Prefetch, PrimFunc, Seq, Stmt, Store, Sync

Node = Expr | Stmt | PrimFunc | Compute | Group | Function | IRModule
Bound = Var | Buffer | Value


class _Encoder:
    """Numbers every distinct structure in order of appearance; the list of structures is the form.

    A structure is a tuple of text and of the numbers of its parts, so sharing does not show, and
    costs nothing.
    """

    def __init__(self) -> None:
        self.numbers: dict[Hashable, int] = {}
        self.seen: dict[Expr, int] = {}
        self.bound: dict[Bound, int] = {}
        self.bindings = 0
        self.free: dict[tuple[str, str], list[Bound]] = {}
        self.implicit = False  # whether free variables are dims of what is being encoded

    def put(self, *structure: str | int | None) -> int:
        return self.numbers.setdefault(structure, len(self.numbers))

    def put_all(self, tag: str, parts: Iterable[object]) -> int:
        return self.put(tag, *[self.encode(part) for part in parts])

    def bind(self, item: Bound) -> int:
        if item in self.bound or any(item in known for known in self.free.values()):
            self.seen.clear()  # expressions of the earlier binding mean something else now
        self.bound[item] = self.bindings
        self.bindings += 1
        return self.bound[item]

    def reference(self, item: Bound, tag: str, *details: str | int | None) -> int:
        """A bound item by its binding; a free one by name, namesakes by order of appearance."""
        number = self.bound.get(item)
        if number is None and self.implicit and tag == "var":
            number = self.bind(item)
            self.put("dim", number, *details)
        if number is not None:
            return self.put("bound", number)
        namesakes = self.free.setdefault((tag, item.name), [])
        if item not in namesakes:
            namesakes.append(item)
        return self.put("free", tag, item.name, namesakes.index(item), *details)

    @singledispatchmethod
    def encode(self, node: object) -> int:
        raise TypeError(f"{type(node).__name__} is not a node of the IR")

    @encode.register
    def expr(self, node: Expr) -> int:
        found = self.seen.get(node)
        if found is None:
            found = self.seen[node] = self.new_expr(node)
        return found

    def new_expr(self, node: Expr) -> int:
        if isinstance(node, Var):
            return self.reference(node, "var", *_bounds(node))
        if isinstance(node, Const):
            return self.put("const", node.dtype.name, _literal(node))
        if isinstance(node, Binary):
            return self.put("binary", node.op, self.expr(node.a), self.expr(node.b))
        if isinstance(node, Unary):
            return self.put("unary", node.op, self.expr(node.a))
        if isinstance(node, Cast):
            return self.put("cast", node.dtype.name, self.expr(node.a))
        if isinstance(node, Load):
            return self.put("load", self.buffer(node.buffer), *map(self.expr, node.index))
        if isinstance(node, Select):
            return self.put("select", self.expr(node.cond), self.expr(node.a), self.expr(node.b))
        if isinstance(node, Intrin):
            return self.put("intrin", node.name, *map(self.expr, node.args))
        raise TypeError(f"{type(node).__name__} is not an expression")

    def declaration(self, buffer: Buffer) -> int:
        shape = map(self.expr, buffer.shape)
        return self.put("buffer", buffer.dtype.name, buffer.scope, *shape)

    @encode.register
    def buffer(self, node: Buffer) -> int:
        if node in self.bound:
            return self.reference(node, "buffer")
        return self.reference(node, "buffer", self.declaration(node))

    def new_buffer(self, buffer: Buffer) -> int:
        declared = self.declaration(buffer)
        return self.put("declare", self.bind(buffer), declared)

    @encode.register
    def loop(self, node: For) -> int:
        extent = self.expr(node.extent)
        var = self.put("index", self.bind(node.var), node.var.dtype.name)
        return self.put("for", node.kind.value, var, extent, self.encode(node.body))

    @encode.register
    def store(self, node: Store) -> int:
        index = self.put_all("index", node.index)
        return self.put("store", self.buffer(node.buffer), index, self.expr(node.value))

    @encode.register
    def let(self, node: Let) -> int:
        value = self.expr(node.value)
        var = self.put("let var", self.bind(node.var), node.var.dtype.name)
        return self.put("let", var, value, self.encode(node.body))

    @encode.register
    def branch(self, node: If) -> int:
        orelse = -1 if node.orelse is None else self.encode(node.orelse)
        return self.put("if", self.expr(node.cond), self.encode(node.then), orelse)

    @encode.register
    def alloc(self, node: Alloc) -> int:
        declared = self.new_buffer(node.buffer)
        return self.put("alloc", declared, self.encode(node.body))

    @encode.register
    def sequence(self, node: Seq) -> int:
        parts = list(flat(node))
        return self.encode(parts[0]) if len(parts) == 1 else self.put_all("seq", parts)

    @encode.register
    def prefetch(self, node: Prefetch) -> int:
        return self.put("prefetch", self.expr(node.place))

    @encode.register
    def sync(self, node: Sync) -> int:
        return self.put("sync")

    @encode.register
    def primfunc(self, node: PrimFunc) -> int:
        dims = [self.put("dim", self.bind(v), *_bounds(v)) for v in node.dims]
        params = [self.new_buffer(buffer) for buffer in node.params]
        return self.put("primfunc", len(dims), *dims, *params, self.encode(node.body))

    def axis(self, node: Axis) -> int:
        extent = self.expr(node.extent)
        return self.put("axis", self.bind(node.var), node.var.dtype.name, extent)

    @encode.register
    def compute(self, node: Compute) -> int:
        axes = self.put("axes", *map(self.axis, node.axes))
        over = self.put("axes", *map(self.axis, node.over))
        found = node.combine
        combine = "" if found is None else f"{found.op} {found.identity!r} {found.by_unit:d}"
        values = map(self.expr, node.values)
        return self.put("compute", axes, over, combine, *values, self.declaration(node.out))

    @encode.register
    def group(self, node: Group) -> int:
        self.implicit = True
        inputs = self.put("inputs", *map(self.new_buffer, node.inputs))
        stages = []
        for compute in node.computes:
            stages += [self.compute(compute), self.new_buffer(compute.out)]
        outputs = self.put_all("outputs", node.outputs)
        return self.put("group", inputs, outputs, *stages)

    def type(self, node: TensorType) -> int:
        return self.put("type", node.dtype.name, *map(self.expr, node.shape))

    @encode.register
    def value(self, node: Value) -> int:
        if node in self.bound:
            return self.reference(node, "value")
        return self.reference(node, "value", self.type(node.type))

    def new_value(self, node: Value) -> int:
        return self.put("value", self.bind(node), self.type(node.type))

    def call(self, node: Call) -> int:
        attrs = [self.put("attr", name, repr(value)) for name, value in node.attrs]
        return self.put("call", node.op, self.put_all("args", node.args), *attrs)

    @encode.register
    def function(self, node: Function) -> int:
        self.implicit = True
        params = self.put("params", *map(self.new_value, node.params))
        weights = [self.put("weight", w.name, self.new_value(w)) for w in node.weights]
        bindings = []
        for binding in node.bindings:
            call = self.call(binding.call)
            bindings.append(self.put("binding", call, *map(self.new_value, binding.outs)))
        results = self.put_all("results", node.results)
        kind = "primitive" if node.primitive else "function"
        return self.put(kind, params, len(weights), *weights, *bindings, results)

    @encode.register
    def module(self, node: IRModule) -> int:
        parts = [self.put("dim", v.name, self.bind(v), *_bounds(v)) for v in node.dims]
        for name in sorted(node.functions):
            parts.append(self.put("named", name, self.function(node.functions[name])))
        for name, array in sorted(node.constants.items()):
            data = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            parts.append(self.put("constant", name, str(array.dtype), str(array.shape), data))
        for name, stacked in sorted(node.fused.items()):
            parts.append(self.put("fused", name, *stacked))
        return self.put("module", node.entry, len(node.dims), *parts)


def _bounds(var: Var) -> tuple[str, int | None, int | None]:
    return var.dtype.name, var.lo, var.hi


def _literal(const: Const) -> str:
    if const.dtype.is_float:
        return repr(float(const.value))  # tells -0.0 from 0.0
    return str(int(const.value))


def flat(seq: Seq) -> Iterable[Stmt]:
    """The statements of a sequence, those of sequences inside it in their place."""
    for stmt in seq.stmts:
        if isinstance(stmt, Seq):
            yield from flat(stmt)
        else:
            yield stmt


def _form(node: Node) -> list[Hashable]:
    encoder = _Encoder()
    encoder.encode(node)
    return list(encoder.numbers)


def equal(a: Node, b: Node) -> bool:
    """Whether two nodes are the same program, up to the names of what they bind."""
    return a is b or _form(a) == _form(b)


def digest(node: Node) -> str:
    """A sha256 over the structure: equal nodes, and only they, share it; stable across runs."""
    text = "\n".join(map(repr, _form(node)))
    return hashlib.sha256(text.encode()).hexdigest()
