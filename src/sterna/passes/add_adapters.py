"""Room for LoRA adapters beside a model's weights, chosen row by row.

In: a module as traced, and how many adapters of what rank go beside which weights. Out: one that
takes `adapter_ids` [n], the adapter of each token or -1, and adds to the results of those weights'
products what the token's adapter says. The adapters themselves come at run time. Knows no names of
families: a module of the room is the path of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sterna.base.artifact import ADAPTER_IDS, FACTORS, AdapterRoom
from sterna.base.dtype import I32, DType
from sterna.base.errors import UsageError
from sterna.ir.expr import wrap
from sterna.ir.graph import Binding, Function, IRModule, TensorType, Value, call
from sterna.ops.restore import UNPACKING
from sterna.passes.def_use import makers, readers, substituted, with_args

Readers = Mapping[Value, Sequence[tuple[Binding, int]]]


def add_adapters(module: IRModule, room: AdapterRoom, dtype: DType) -> IRModule:
    """Add a product of low rank to every product with a weight of the room's modules.

    It is added after the bias. `dtype` is that of the factors. Raises UsageError for a module of
    the room that no layer has.

    Before:
        n = dim(1, 64)

        @function
        def forward(x: f32[n, 8]):
            y: f32[n, 8] = layer(x, repeat=2)
            return y

        @function
        def layer(x: f32[n, 8]):
            w = weight("layers.{i}.up.weight", f32[8, 8])
            b = weight("layers.{i}.up.bias", f32[8])
            product: f32[n, 8] = matmul(x, w)
            y: f32[n, 8] = add(product, b)
            return y

        entry("forward")
    After:
        n = dim(1, 64)

        @function
        def forward(x: f32[n, 8], adapter_ids: i32[n]):
            y: f32[n, 8] = layer(x, adapter_ids, repeat=2)
            return y

        @function
        def layer(x: f32[n, 8], adapter_ids: i32[n]):
            w = weight("layers.{i}.up.weight", f32[8, 8])
            b = weight("layers.{i}.up.bias", f32[8])
            lora_A = weight("layers.{i}.up.lora_A", f32[6, 8])
            lora_B = weight("layers.{i}.up.lora_B", f32[6, 8])
            product: f32[n, 8] = matmul(x, w)
            biased: f32[n, 8] = add(product, b)
            y: f32[n, 8] = add_low_rank(biased, x, adapter_ids, lora_A, lora_B, rank=3)
            return y

        entry("forward")
    """
    entry = module.functions[module.entry]
    if any(p.name == ADAPTER_IDS for p in entry.params):
        return module
    tokens = TensorType((entry.params[0].shape[0],), I32)
    functions, found = {}, set[str]()
    for name, function in module.functions.items():
        ids = Value(ADAPTER_IDS, tokens)
        with_ids = _passing_ids(function, ids, module)
        adapted = _Adapted(with_ids, ids, room if name != module.entry else None, dtype)
        functions[name] = adapted.function()
        found |= adapted.modules
    missing = [path for path in room.modules if path not in found]
    if missing:
        raise UsageError(
            f"an adapter changes {missing[0][:200]}, which is no layer's linear weight of this "
            "model; it belongs to another model, or has to be merged: sterna convert_weight --lora"
        )
    return replace(module, functions=functions)


def _passing_ids(function: Function, ids: Value, module: IRModule) -> Function:
    """The function with the adapters' numbers as a parameter, handed on to those it calls."""
    bindings = tuple(
        with_args(b, (*b.call.args, ids)) if b.call.op in module.functions else b
        for b in function.bindings
    )
    return replace(function, params=(*function.params, ids), bindings=bindings)


@dataclass(slots=True)
class _Adapted:
    """A Function with its products of low rank; `modules` are those that it has of the room's."""

    whole: Function
    ids: Value
    room: AdapterRoom | None
    dtype: DType
    modules: set[str] = field(default_factory=set)

    def function(self) -> Function:
        if self.room is None:
            return self.whole
        made, read = makers(self.whole), readers(self.whole)
        after: dict[Binding, tuple[Value, str]] = {}  # what the product multiplies, and its module
        for binding in self.whole.bindings:
            path = _module(binding, made)
            if path in self.room.modules:
                self.modules.add(path)
                last = _with_bias(binding, f"{path}.bias", made, read)
                after[last] = (binding.call.args[0], path)
        renamed: dict[Value, Value] = {}
        bindings, weights = list[Binding](), list(self.whole.weights)
        for binding in self.whole.bindings:
            bindings.append(substituted(binding, renamed))
            if binding in after:
                x, path = after[binding]
                base = binding.outs[0]
                factors = self._factors(path, x, base, self.room)
                weights += factors
                x = renamed.get(x, x)
                added = call("add_low_rank", base, x, self.ids, *factors, rank=self.room.rank)
                out = Value(f"{base.name}_adapted", base.type)
                bindings.append(Binding((out,), added))
                renamed[base] = out
        results = tuple(renamed.get(value, value) for value in self.whole.results)
        return replace(
            self.whole, bindings=tuple(bindings), weights=tuple(weights), results=results
        )

    def _factors(self, path: str, x: Value, y: Value, room: AdapterRoom) -> tuple[Value, Value]:
        rows = wrap(room.count * room.rank)
        a, b = (TensorType((rows, value.shape[1]), self.dtype) for value in (x, y))
        return Value(f"{path}.{FACTORS[0]}", a), Value(f"{path}.{FACTORS[1]}", b)


def _module(binding: Binding, made: Mapping[Value, Binding]) -> str:
    """The path of the weight that a matmul multiplies with; "" of anything else."""
    if binding.call.op != "matmul":
        return ""
    weight = binding.call.args[1]
    unpack = made.get(weight)
    if unpack is not None:
        if unpack.call.op not in UNPACKING:
            return ""
        weight = unpack.call.args[0]
    return weight.name.rpartition(".")[0]


def _with_bias(
    product: Binding, bias: str, made: Mapping[Value, Binding], read: Readers
) -> Binding:
    """The binding that adds the module's bias to a product; the product itself without one."""
    for reader, position in read.get(product.outs[0], ()):
        if reader.call.op != "add" or position != 0:
            continue
        added = reader.call.args[1]
        cast = made.get(added)
        if cast is not None and cast.call.op == "cast":
            added = cast.call.args[0]
        if added.name == bias:
            return reader
    return product
