"""One matmul with a stacked weight in place of several that read the same input.

In: a module and the family's table of weights that the model folder stores stacked along the
rows. Out: one in which every stored name is read as it is stored. Knows the names of weights, and
where packed weights have their rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sterna.base.artifact import FACTORS
from sterna.base.errors import InvalidIR
from sterna.ir.expr import Expr, const_value, wrap
from sterna.ir.graph import Binding, Call, Function, IRModule, TensorType, Value, call
from sterna.ops.restore import UNPACKING
from sterna.passes.def_use import makers, readers

Fused = Mapping[str, tuple[str, ...]]
Readers = Mapping[Value, Sequence[tuple[Binding, int]]]
_BESIDE = ("bias", *FACTORS)  # a weight's own bias and its adapters' factors


def combine_matmul(module: IRModule, fused: Fused) -> IRModule:
    """Stack the weights of matmuls that share their input, as `fused` says, and slice the result.

    Biases are stacked too where every part has one. Weights that are stored in different forms
    cannot be stacked and stay apart, in the model folder as well. Raises InvalidIR when weights
    that are stored stacked are read in another way. The example's table is
    {"gate_up": ("gate", "up")}.

    Before:
        n = dim(1, 64)

        @function
        def f(x: f32[n, 8]):
            a = weight("mlp.gate.weight", f16[16, 8])
            b = weight("mlp.up.weight", f16[16, 8])
            gate: f32[n, 16] = matmul(x, a)
            up: f32[n, 16] = matmul(x, b)
            y: f32[n, 16] = multiply(gate, up)
            return y

        entry("f")
    After:
        n = dim(1, 64)
        fused("mlp.gate_up.weight", "mlp.gate.weight", "mlp.up.weight")

        @function
        def f(x: f32[n, 8]):
            w = weight("mlp.gate_up.weight", f16[32, 8])
            both: f32[n, 32] = matmul(x, w)
            gate: f32[n, 16] = slice(both, size=16, start=0)
            up: f32[n, 16] = slice(both, size=16, start=16)
            y: f32[n, 16] = multiply(gate, up)
            return y

        entry("f")
    """
    functions: dict[str, Function] = {}
    names = dict(module.fused)
    for name, function in module.functions.items():
        stacks = [_stack(group) for group in _groups(function, fused)]
        functions[name] = _combined(function, stacks)
        for stack in stacks:
            names |= {w.name: tuple(p.name for p in parts) for w, parts in stack.weights.items()}
    return replace(module, functions=functions, fused=names)


@dataclass(frozen=True, slots=True)
class _Part:
    """One of the matmuls, and what belongs to it alone.

    `bindings` are the matmul itself, what unpacks a packed weight, and the bias's cast and
    add; `weights` are the tensors stored for the weight, `bias` for the bias.
    """

    name: str  # "q_proj"
    result: Value
    weights: tuple[Value, ...]
    matmul: Binding
    unpack: Binding | None = None
    bias: Value | None = None
    cast: Binding | None = None
    add: Binding | None = None

    @property
    def bindings(self) -> Iterator[Binding]:
        everything = (self.matmul, self.unpack, self.cast, self.add)
        return (binding for binding in everything if binding is not None)

    def without_bias(self) -> _Part:
        plain = self.matmul.outs[0]
        return replace(self, result=plain, bias=None, cast=None, add=None)


@dataclass(frozen=True, slots=True)
class _Group:
    """Parts in the order of the table, all below one prefix."""

    prefix: str
    name: str  # "qkv_proj"
    parts: tuple[_Part, ...]

    def path(self, leaf: str) -> str:
        return ".".join(component for component in (self.prefix, self.name, leaf) if component)


@dataclass(slots=True)
class _Stack:
    """What replaces a group: new bindings at its first matmul, and which weights became one."""

    parts: tuple[_Part, ...]
    bindings: list[Binding] = field(default_factory=list)
    weights: dict[Value, tuple[Value, ...]] = field(default_factory=dict)

    def emit(self, name: str, type: TensorType, call: Call) -> Value:
        out = Value(name, type)
        self.bindings.append(Binding((out,), call))
        return out

    def weight(self, group: _Group, parts: tuple[Value, ...], axis: int) -> Value:
        """The stacked form of one stored tensor of each part."""
        stacked = Value(group.path(_split(parts[0].name)[2]), _stacked_type(parts, axis))
        self.weights[stacked] = parts
        return stacked


def _split(name: str) -> tuple[str, str, str]:
    """("mlp", "up_proj", "weight") of "mlp.up_proj.weight"."""
    path, _, leaf = name.rpartition(".")
    prefix, _, own = path.rpartition(".")
    return prefix, own, leaf


def _groups(function: Function, fused: Fused) -> list[_Group]:
    """Every set of matmuls that the table wants as one."""
    whole = {part: name for name, parts in fused.items() for part in parts}
    made, read = makers(function), readers(function)
    found: dict[tuple[str, str], dict[str, _Part]] = {}
    for weight in function.weights:
        prefix, own, leaf = _split(weight.name)
        if own not in whole or leaf in _BESIDE:
            continue
        part = _part(function, read, own, weight)
        if part is None:
            raise _refused(function, weight.name, whole[own], "it is not read by one matmul alone")
        found.setdefault((prefix, whole[own]), {})[own] = _with_bias(function, made, read, part)
    for (prefix, name), parts in found.items():
        _check_alike(function, prefix, name, fused[name], parts)
    return [
        _Group(prefix, name, tuple(parts[own] for own in fused[name]))
        for (prefix, name), parts in found.items()
        if _stackable(parts)
    ]


def _part(function: Function, read: Readers, own: str, weight: Value) -> _Part | None:
    """The matmul that reads a weight, if nothing else does."""
    unpack = next((b for o in UNPACKING if (b := _sole_reader(read, weight, o))), None)
    matrix = weight if unpack is None else unpack.outs[0]
    matmul = _sole_reader(read, matrix, "matmul", 1)
    if matmul is None or weight in function.results or matrix in function.results:
        return None
    tensors = (weight,) if unpack is None else unpack.call.args
    return _Part(own, matmul.outs[0], tensors, matmul, unpack)


def _sole_reader(
    read: Readers, value: Value, op: str, position: int | None = None
) -> Binding | None:
    """The only reader of a value, if it is a call of `op`."""
    found = read.get(value, [])
    if len(found) != 1 or found[0][0].call.op != op or position not in (None, found[0][1]):
        return None
    return found[0][0]


def _with_bias(function: Function, made: dict[Value, Binding], read: Readers, part: _Part) -> _Part:
    """The part with the bias that is added to its matmul, if nothing else reads either."""
    add = _sole_reader(read, part.result, "add", 0)
    if add is None or part.result in function.results:
        return part
    added = add.call.args[1]
    cast = made.get(added)
    if cast is not None and cast.call.op != "cast":
        return part
    bias = added if cast is None else cast.call.args[0]
    alone = len(read[bias]) == len(read[added]) == 1 and added not in function.results
    if not alone or bias not in function.weights or len(bias.shape) != 1:
        return part
    return replace(part, result=add.outs[0], bias=bias, cast=cast, add=add)


def _check_alike(
    function: Function, prefix: str, name: str, wanted: tuple[str, ...], parts: dict[str, _Part]
) -> None:
    """All parts are there and read one input."""
    missing = [own for own in wanted if own not in parts]
    if missing:
        raise _refused(function, prefix, name, f"{', '.join(missing)} is not read beside the rest")
    if len({part.matmul.call.args[0] for part in parts.values()}) > 1:
        raise _refused(function, prefix, name, "the matmuls of its parts do not share their input")


def _stackable(parts: dict[str, _Part]) -> bool:
    """Whether all parts are stored in one form, row by row; others stay as they are."""
    by_rows = all(len(weight.shape) == 2 for part in parts.values() for weight in part.weights)
    biases = {part.bias.dtype for part in parts.values() if part.bias is not None}
    return by_rows and len({_form(part) for part in parts.values()}) == 1 and len(biases) <= 1


def _form(part: _Part) -> object:
    """How a weight is stored, but for its number of rows."""
    matrix = part.matmul.call.args[1]
    tensors = tuple((_split(w.name)[2], w.dtype, len(w.shape)) for w in part.weights)
    unpack = () if part.unpack is None else (part.unpack.call.op, *part.unpack.call.attrs)
    return const_value(matrix.shape[1]), tensors, tuple(a for a in unpack if a[0] != "rows")


def _refused(function: Function, path: str, name: str, reason: str) -> InvalidIR:
    return InvalidIR(
        f"function {function.name}: weights at {path} are stored stacked as {name}, but {reason};"
        f" change the forward pass, or take {name} out of the family's FUSED table"
    )


def _stack(group: _Group) -> _Stack:
    """One matmul of a group's stacked weights, and a slice of it for each part."""
    parts = group.parts
    if not all(part.bias for part in parts):
        parts = tuple(part.without_bias() for part in parts)
    stack = _Stack(parts)
    out = _stacked_matmul(group, stack)
    if parts[0].bias is not None:
        out = _stacked_bias(group, stack, out)
    start = 0
    for part in parts:
        size = _int(part.result.shape[1])
        stack.bindings.append(Binding((part.result,), call("slice", out, start=start, size=size)))
        start += size
    return stack


def _stacked_matmul(group: _Group, stack: _Stack) -> Value:
    first = stack.parts[0]
    unpack = first.unpack
    axis = -1 if unpack is not None and unpack.call.attr("layout") == "KN" else 0
    columns = zip(*(part.weights for part in stack.parts), strict=True)
    weights = [stack.weight(group, tensors, axis) for tensors in columns]
    matrix = weights[0]
    if unpack is not None:
        kind = _stacked_type([part.matmul.call.args[1] for part in stack.parts], 0)
        attrs = dict(unpack.call.attrs) | {"rows": _int(kind.shape[0])}
        matrix = stack.emit(f"{group.name}_weight", kind, call(unpack.call.op, *weights, **attrs))
    kind = _stacked_type([part.matmul.outs[0] for part in stack.parts], -1)
    return stack.emit(group.name, kind, call("matmul", first.matmul.call.args[0], matrix))


def _stacked_bias(group: _Group, stack: _Stack, out: Value) -> Value:
    biases = tuple(part.bias for part in stack.parts if part.bias is not None)
    bias, cast = stack.weight(group, biases, 0), stack.parts[0].cast
    if cast is not None:
        kind = TensorType(bias.shape, cast.outs[0].dtype)
        bias = stack.emit(f"{group.name}_bias", kind, Call("cast", (bias,), cast.call.attrs))
    return stack.emit(f"{group.name}_biased", out.type, call("add", out, bias))


def _stacked_type(parts: Sequence[Value], axis: int) -> TensorType:
    """The type of tensors laid end to end along a static axis."""
    shape = list(parts[0].shape)
    shape[axis] = wrap(sum(_int(part.shape[axis]) for part in parts))
    return TensorType(tuple(shape), parts[0].dtype)


def _int(extent: Expr) -> int:
    size = const_value(extent)
    assert size is not None, "a weight has static rows, by the trace"
    return int(size)


def _combined(function: Function, stacks: list[_Stack]) -> Function:
    """The function with each group's bindings at its first matmul, and its weights at the first."""
    gone = {binding for stack in stacks for part in stack.parts for binding in part.bindings}
    order = {binding: i for i, binding in enumerate(function.bindings)}
    first = {min((p.matmul for p in s.parts), key=order.__getitem__): s for s in stacks}
    bindings: list[Binding] = []
    for binding in function.bindings:
        if binding in first:
            bindings += first[binding].bindings
        elif binding not in gone:
            bindings.append(binding)
    stacked = {parts[0]: whole for s in stacks for whole, parts in s.weights.items()}
    others = {part for s in stacks for parts in s.weights.values() for part in parts[1:]}
    weights = (stacked.get(w, w) for w in function.weights if w not in others)
    return replace(function, bindings=tuple(bindings), weights=tuple(weights))
