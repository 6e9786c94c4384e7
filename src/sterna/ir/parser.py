"""Reads the text form of the IRs, with Python's own `ast`; nothing in it is ever executed.

    module    name = dim(lo, hi) | constant("name", shape, [numbers]) | fused("name", "part", ...)
              | function | entry("name")
    function  @function or @primitive   def name(x: f32[n, 64], ..., *, n: dim(1, 512)):
                  w = weight("layers.{i}.w", f32[64, 64])
                  y: f32[n, 64] = matmul(x, w, key=value)      a, b = outs(split(y), f32[n], f32[n])
                  return y
    group     @group    y[i:n, j:64]: f32 = sum(x[i, k] * w[j, k] for k in range(64))
    kernel    @kernel   statements:
              for i in range(8): | parallel | vector | unroll        y[i] = value        sync()
              v = value     acc = alloc("register", f32, 8)     if c: else:     with scope():
    dtype     f32[n, 64] @ "shared"

Text is from strangers: whatever is not in the grammar raises InvalidIR with its line. Types that
do not agree are `verify`'s to find.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import DType
from sterna.base.errors import InvalidIR
from sterna.ir.block_parser import (
    BlockParser,
    Scope,
    arguments_of,
    call_name,
    expect,
    fail,
    items_of,
    literal,
    source,
    text_of,
)
from sterna.ir.compute import MAX, SUM, UNIT_SUM, Axis, Combine, Compute, Group, axis
from sterna.ir.expr import BINARY, Buffer, Expr, Var
from sterna.ir.graph import Attr, Binding, Call, Function, IRModule, TensorType, Value
from sterna.ir.loop import PrimFunc, Stmt

T = TypeVar("T")
_REDUCTIONS = {"sum": SUM, "max": MAX, "unit_sum": UNIT_SUM}


class _Parser(BlockParser):
    """Kernels, groups, functions and modules."""

    # Kernels.

    def dims(self, arguments: ast.arguments) -> tuple[Var, ...]:
        """Keyword-only parameters; they come first, because the others' shapes use them."""
        if arguments.vararg or arguments.kwarg or arguments.posonlyargs or arguments.defaults:
            fail(arguments.args[0] if arguments.args else arguments, "parameters are plain names")
        dims = []
        for arg in arguments.kwonlyargs:
            var = self.dim(arg.arg, arg.annotation or arg)
            self.define(arg, arg.arg, var)
            dims.append(var)
        return tuple(dims)

    def annotated(self, arguments: ast.arguments) -> list[tuple[ast.arg, TensorType, str]]:
        parsed = []
        for arg in arguments.args:
            if arg.annotation is None:
                fail(arg, f"parameter {arg.arg} needs a type such as f32[n, 64]")
            dtype, shape, scope = self.tensor(arg.annotation)
            parsed.append((arg, TensorType(shape, dtype), scope))
        return parsed

    def buffers(self, arguments: ast.arguments) -> tuple[Buffer, ...]:
        buffers = []
        for arg, kind, scope in self.annotated(arguments):
            buffer = Buffer(arg.arg, kind.dtype, kind.shape, scope)
            self.define(arg, arg.arg, buffer)
            buffers.append(buffer)
        return tuple(buffers)

    def primfunc(self, node: ast.FunctionDef) -> PrimFunc:
        dims = self.dims(node.args)
        params = self.buffers(node.args)
        return PrimFunc(node.name, params, dims, self.block(node.body))

    def group(self, node: ast.FunctionDef) -> Group:
        self.dims(node.args)
        inputs = self.buffers(node.args)
        *body, last = node.body
        computes = []
        for stmt in body:
            compute = self.compute(stmt)
            self.define(stmt, compute.out.name, compute.out)
            computes.append(compute)
        outputs = [self.look_up(item, Buffer, "buffer") for item in _returned(last)]
        return Group(node.name, inputs, tuple(outputs), tuple(computes))

    def compute(self, node: ast.stmt) -> Compute:
        stmt = expect(node, ast.AnnAssign, "a compute such as y[i:n]: f32 = x[i]")
        target = expect(stmt.target, ast.Subscript, "a target such as y[i:n]")
        name = expect(target.value, ast.Name, "the name of a buffer").id
        dtype, shape, scope = self.tensor(stmt.annotation)
        if stmt.value is None:
            fail(node, f"{name} is given no value")
        outer = dict(self.names)
        axes = self.axes([_slice(item) for item in items_of(target.slice)])
        body, over, combine, start = self.reduction(stmt.value, dtype)
        self.names = outer
        extents = shape or tuple(a.extent for a in axes)
        return Compute(Buffer(name, dtype, extents, scope), axes, body, over, combine, start)

    def axes(self, pairs: Iterable[tuple[ast.Name, ast.expr]]) -> tuple[Axis, ...]:
        extents = [(name, self.expr(extent)) for name, extent in pairs]
        axes = [axis(name.id, extent) for name, extent in extents]
        for (name, _), parsed in zip(extents, axes, strict=True):
            self.define(name, name.id, parsed.var)
        return tuple(axes)

    def reduction(
        self, node: ast.expr, dtype: DType
    ) -> tuple[Expr, tuple[Axis, ...], Combine | None, Expr | None]:
        if not (isinstance(node, ast.Call) and node.args):
            return self.expr(node, dtype), (), None, None
        generator, name = node.args[-1], call_name(node)
        if not isinstance(generator, ast.GeneratorExp):
            return self.expr(node, dtype), (), None, None
        node, start = _start(node)
        if name in _REDUCTIONS:
            arguments_of(node, 1)
            combine = _REDUCTIONS[name]
        elif name == "reduce":
            combine = self.combine(node)
        else:
            fail(node, f"a reduction is sum, max or reduce, not {source(node.func)}")
        over = self.axes([_generated(part) for part in generator.generators])
        body = self.expr(generator.elt)
        return body, over, combine, None if start is None else self.expr(start, dtype)

    def combine(self, node: ast.Call) -> Combine:
        op, identity, _ = arguments_of(node, 3)
        value = literal(identity)
        if value is None or text_of(op) not in BINARY:
            fail(node, "reduce takes an operator's name, its identity and a generator")
        return Combine(text_of(op), float(value))

    # Graphs.

    def function(self, node: ast.FunctionDef) -> Function:
        self.dims(node.args)
        params = []
        for arg, kind, _ in self.annotated(node.args):
            params.append(Value(arg.arg, kind))
            self.define(arg, arg.arg, params[-1])
        *body, last = node.body
        weights = [stmt for stmt in body if _is_weight(stmt)]
        parsed = tuple(self.weight(stmt) for stmt in weights)
        bindings = tuple(self.binding(stmt) for stmt in body if not _is_weight(stmt))
        results = tuple(self.look_up(item, Value, "tensor") for item in _returned(last))
        primitive = _decorator(node) == "primitive"
        return Function(node.name, tuple(params), parsed, bindings, results, primitive)

    def weight(self, node: ast.stmt) -> Value:
        assert isinstance(node, ast.Assign)
        assert isinstance(node.value, ast.Call)
        target = expect(node.targets[0], ast.Name, "a name").id
        name, annotation = arguments_of(node.value, 2)
        dtype, shape, _ = self.tensor(annotation)
        value = Value(text_of(name), TensorType(shape, dtype))
        self.define(node, target, value)
        return value

    def binding(self, node: ast.stmt) -> Binding:
        if isinstance(node, ast.Expr):
            return Binding((), self.op_call(node.value))
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            call = self.op_call(node.value)
            return Binding((self.out(node.target, node.annotation),), call)
        assign = expect(node, ast.Assign, "a binding such as y: f32[n] = op(x)")
        targets = items_of(assign.targets[0])
        if call_name(assign.value) != "outs":
            fail(node, "a binding declares its types: y: f32[n] = op(x), or a, b = outs(op(x), ..)")
        many = len(targets) + 1
        first, *types = arguments_of(expect(assign.value, ast.Call, "outs"), many)
        call = self.op_call(first)
        return Binding(tuple(map(self.out, targets, types)), call)

    def out(self, target: ast.expr, annotation: ast.expr) -> Value:
        name = expect(target, ast.Name, "the name of a tensor").id
        dtype, shape, _ = self.tensor(annotation)
        value = Value(name, TensorType(shape, dtype))
        self.define(target, name, value)
        return value

    def op_call(self, node: ast.expr) -> Call:
        call = expect(node, ast.Call, "an operator applied to tensors")
        args = tuple(self.look_up(arg, Value, "tensor") for arg in call.args)
        attrs = tuple(
            (k.arg or fail(call, "** is not allowed"), _attr(k.value)) for k in call.keywords
        )
        return Call(_op_name(call.func), args, attrs)

    def module(self, nodes: Sequence[ast.stmt]) -> IRModule:
        functions: dict[str, Function] = {}
        constants: dict[str, NDArray[np.float32]] = {}
        fused: dict[str, tuple[str, ...]] = {}
        dims, entry = [], None
        for node in nodes:
            name = call_name(node.value) if isinstance(node, ast.Expr | ast.Assign) else ""
            if isinstance(node, ast.FunctionDef):
                _once(node, node.name, functions)
                functions[node.name] = self.inside(lambda node=node: self.function(node))  # type: ignore[misc]
            elif name == "dim" and isinstance(node, ast.Assign):
                target = expect(node.targets[0], ast.Name, "the name of a dim").id
                dims.append(self.dim(target, node.value))
                self.define(node, target, dims[-1])
            elif name == "constant":
                key, array = _constant(node)
                _once(node, key, constants)
                constants[key] = array
            elif name == "fused":
                key, *parts = map(text_of, _module_call(node, 1, 1000))
                _once(node, key, fused)
                fused[key] = tuple(parts)
            elif name == "entry" and entry is None:
                entry = text_of(_module_call(node, 1)[0])
            else:
                fail(node, f"{source(node)!r} does not belong in a module")
        if entry is None:
            raise InvalidIR('line 1: the module names no entry; end it with entry("name")')
        return IRModule(functions, entry, tuple(dims), constants, fused)


def _once(node: ast.AST, name: str, known: Mapping[str, object]) -> None:
    if name in known:
        fail(node, f"{name} is already defined")


def _module_call(node: ast.stmt, least: int, most: int | None = None) -> list[ast.expr]:
    statement = expect(node, ast.Expr, "a declaration")
    return arguments_of(expect(statement.value, ast.Call, "a declaration"), least, most)


def _constant(node: ast.stmt) -> tuple[str, NDArray[np.float32]]:
    name, shape, numbers = _module_call(node, 3)
    sizes = [literal(item) for item in expect(shape, ast.Tuple, "a shape").elts]
    values = [literal(item) for item in expect(numbers, ast.List, "a list of numbers").elts]
    extents = [size for size in sizes if isinstance(size, int) and size >= 0]
    known = [value for value in values if value is not None]
    if len(extents) != len(sizes) or len(known) != len(values):
        fail(node, "a constant is a shape and a list of numbers")
    if int(np.prod(extents, dtype=object)) != len(known):
        fail(node, f"{len(known)} numbers do not fill the shape {extents}")
    return text_of(name), np.array(known, np.float32).reshape(extents)


def _slice(node: ast.expr) -> tuple[ast.Name, ast.expr]:
    part = expect(node, ast.Slice, "an axis such as i:n")
    if part.lower is None or part.upper is None or part.step is not None:
        fail(node, "an axis is written i:n")
    return expect(part.lower, ast.Name, "the name of an axis"), part.upper


def _generated(part: ast.comprehension) -> tuple[ast.Name, ast.expr]:
    name = expect(part.target, ast.Name, "the name of an axis")
    if part.ifs or part.is_async or call_name(part.iter) != "range":
        fail(part.iter, "a reduction runs over range(extent)")
    return name, arguments_of(expect(part.iter, ast.Call, "a range"), 1)[0]


def _start(node: ast.Call) -> tuple[ast.Call, ast.expr | None]:
    """A reduction's call without `start=`, and what stood there."""
    if [k.arg for k in node.keywords] != ["start"]:
        return node, None
    return ast.copy_location(ast.Call(node.func, node.args, []), node), node.keywords[0].value


def _returned(node: ast.stmt) -> list[ast.expr]:
    value = expect(node, ast.Return, "the final return").value
    return [] if value is None else items_of(value)


def _is_weight(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and call_name(node.value) == "weight"


def _attr(node: ast.expr) -> Attr:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Tuple):
        items = [literal(item) for item in node.elts]
        whole = tuple(i for i in items if isinstance(i, int) and not isinstance(i, bool))
        return whole if len(whole) == len(items) else fail(node, "attribute tuples hold integers")
    value = literal(node)
    return fail(node, f"{source(node)!r} is not an attribute") if value is None else value


def _op_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_op_name(node.value)}.{node.attr}"
    return expect(node, ast.Name, "the name of an operator").id


def _decorator(node: ast.FunctionDef) -> str:
    names = [d.id for d in node.decorator_list if isinstance(d, ast.Name)]
    return names[0] if len(names) == len(node.decorator_list) == 1 else ""


def _definition(nodes: Sequence[ast.stmt], *decorators: str) -> ast.FunctionDef:
    if len(nodes) != 1 or not isinstance(nodes[0], ast.FunctionDef):
        raise InvalidIR(f"line 1: one definition under @{' or @'.join(decorators)} is expected")
    if _decorator(nodes[0]) not in decorators:
        fail(nodes[0], f"{nodes[0].name} is not under @{' or @'.join(decorators)}")
    return nodes[0]


def _read(text: str, parse: Callable[[list[ast.stmt]], T]) -> T:
    """Parse Python text, then its tree; whatever Python has against it becomes InvalidIR."""
    try:
        return parse(ast.parse(text).body)
    except SyntaxError as error:
        raise InvalidIR(f"line {error.lineno or 1}: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError) as error:
        raise InvalidIR(f"line 1: the text cannot be read: {error or 'nested too deep'}") from None


def parse_expr(text: str, scope: Scope | None = None) -> Expr:
    """An expression over the Vars and Buffers in `scope`."""

    def parse(nodes: list[ast.stmt]) -> Expr:
        if len(nodes) != 1:
            raise InvalidIR("line 1: one expression is expected")
        return _Parser(scope or {}).expr(expect(nodes[0], ast.Expr, "an expression").value)

    return _read(text, parse)


def parse_stmt(text: str, scope: Scope | None = None) -> Stmt:
    """Statements over the Vars and Buffers in `scope`."""
    return _read(text, lambda nodes: _Parser(scope or {}).block(nodes))


def parse_compute(text: str, scope: Scope | None = None) -> Compute:
    """One compute over the Vars and Buffers in `scope`."""

    def parse(nodes: list[ast.stmt]) -> Compute:
        if len(nodes) != 1:
            raise InvalidIR("line 1: one compute is expected")
        return _Parser(scope or {}).compute(nodes[0])

    return _read(text, parse)


def parse_primfunc(text: str) -> PrimFunc:
    """A definition under @kernel."""
    return _read(text, lambda nodes: _Parser({}).primfunc(_definition(nodes, "kernel")))


def parse_group(text: str) -> Group:
    """A definition under @group."""
    return _read(text, lambda nodes: _Parser({}).group(_definition(nodes, "group")))


def parse_function(text: str, dims: Scope | None = None) -> Function:
    """A definition under @function or @primitive; `dims` are those of its module."""

    def parse(nodes: list[ast.stmt]) -> Function:
        return _Parser(dims or {}).function(_definition(nodes, "function", "primitive"))

    return _read(text, parse)


def parse_module(text: str) -> IRModule:
    """A whole module: dims, constants, functions, entry."""
    return _read(text, lambda nodes: _Parser({}).module(nodes))
