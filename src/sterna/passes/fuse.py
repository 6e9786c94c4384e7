"""Group operators into kernels: every group becomes a primitive Function.

What moves values only (dequantize, slice, cast) goes into each of its readers and is never
stored. An element-wise operator joins the kernel that makes its input, as its epilogue, when it is
that input's only reader; so does a cast that has to be stored, where a gather makes its input. A
sum that a norm reads joins the norm's kernel and is stored beside it. Operators with a loop program
of their own head a kernel and take movers in. Element-wise operators whose result only becomes
pairs of bf16 join the kernel that makes the pairs; where rows are kept near, so do those whose
result only becomes codes.

In: a module after the passes over operators. Out: the same values, by calls of primitive
Functions alone. It knows how operators fuse, not what kernels cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from sterna.ir.graph import Binding, Call, Function, IRModule, Value, call
from sterna.ops import OPS, Kind, op
from sterna.ops.restore import UNPACKING

# Recomputed by each reader: they cost next to nothing.
MOVERS = (*UNPACKING, "slice", "slice_groups", "repeat_heads", "flatten", "cast")
NORMS = ("rms_norm", "layer_norm")
PRODUCTS = ("matmul", "quantized_matmul", "unit_matmul", "bf16_matmul")
CODES = "dynamic_quantize"
PAIRS = "bf16_pairs"


def fuse(module: IRModule, *, near_rows: bool = False) -> IRModule:
    """Replace the operators of every Function by calls of primitive Functions.

    `near_rows`: a thread may keep a row of any length near it, which is then computed once where
    a kernel needs it more than once.

    Before:
        n = dim(1, 64)

        @function
        def layer(x: f32[n, 64], y: f32[n, 32]):
            q_weight = weight('o.q_weight', u32[64, 4])
            q_scale = weight('o.q_scale', f16[64, 1])
            norm = weight('norm.weight', f16[64])
            w: f32[64, 32] = dequantize(q_weight, q_scale, bias=7, bits=4, depth=32,
                                        group=32, layout='NK', packing='word', rows=64)
            o: f32[n, 64] = matmul(y, w)
            gated: f32[n, 64] = multiply(o, x)
            sum: f32[n, 64] = add(x, gated)
            scale: f32[64] = cast(norm, dtype='f32')
            out: f32[n, 64] = rms_norm(sum, scale, eps=1e-05)
            return out, sum

        entry('layer')
    After:
        n = dim(1, 64)

        @function
        def layer(x: f32[n, 64], y: f32[n, 32]):
            q_weight = weight('o.q_weight', u32[64, 4])
            q_scale = weight('o.q_scale', f16[64, 1])
            norm = weight('norm.weight', f16[64])
            gated: f32[n, 64] = layer_0_matmul_multiply(y, x)
            sum, out = outs(layer_1_add_rms_norm(x, gated), f32[n, 64], f32[n, 64])
            return out, sum

        @primitive
        def layer_0_matmul_multiply(y: f32[n, 32], x: f32[n, 64]):
            q_weight = weight('o.q_weight', u32[64, 4])
            q_scale = weight('o.q_scale', f16[64, 1])
            w: f32[64, 32] = dequantize(q_weight, q_scale, bias=7, bits=4, depth=32,
                                        group=32, layout='NK', packing='word', rows=64)
            o: f32[n, 64] = matmul(y, w)
            gated: f32[n, 64] = multiply(o, x)
            return gated

        @primitive
        def layer_1_add_rms_norm(x: f32[n, 64], gated: f32[n, 64]):
            norm = weight('norm.weight', f16[64])
            sum: f32[n, 64] = add(x, gated)
            scale: f32[64] = cast(norm, dtype='f32')
            out: f32[n, 64] = rms_norm(sum, scale, eps=1e-05)
            return sum, out

        entry('layer')
    """
    functions: dict[str, Function] = {}
    for function in module.functions.values():
        if function.primitive:
            functions[function.name] = function
            continue
        fused = _Fusion(function, near_rows)
        functions[function.name] = fused.caller()
        functions.update({p.name: p for p in fused.primitives})
    return replace(module, functions=functions)


@dataclass(slots=True)
class _Fusion:
    """The kernels of one Function."""

    function: Function
    near_rows: bool
    maker: dict[Value, int] = field(default_factory=dict)
    readers: dict[Value, list[int]] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=list)
    group_of: dict[int, int] = field(default_factory=dict)
    primitives: list[Function] = field(default_factory=list)

    def __post_init__(self) -> None:
        for i, binding in enumerate(self.function.bindings):
            self.maker.update(dict.fromkeys(binding.outs, i))
            for arg in dict.fromkeys(binding.call.args):
                self.readers.setdefault(arg, []).append(i)
        for i, binding in enumerate(self.function.bindings):
            if binding.call.op in OPS and not self._moves(i):
                self._assign(i, self._home(i))

    def _moves(self, i: int) -> bool:
        """Whether binding i is left to its readers; results and call arguments must be stored."""
        binding = self.function.bindings[i]
        out = binding.outs[0]
        if binding.call.op not in MOVERS or out in self.function.results:
            return False
        return all(self.function.bindings[r].call.op in OPS for r in self.readers.get(out, []))

    def _assign(self, i: int, home: int | None) -> None:
        if home is None:
            self.groups.append([])
            home = len(self.groups) - 1
        self.groups[home].append(i)
        self.group_of[i] = home

    def _home(self, i: int) -> int | None:
        """The group that binding i joins, None for one of its own."""
        call = self.function.bindings[i].call
        if call.op in NORMS:
            source = self.maker.get(call.args[0])
            home = self.group_of.get(source) if source is not None else None
            joined = source is not None and self._for_norm(source)
            return home if joined and home is not None and self._may_wait(home, i) else None
        if call.op == PAIRS or (call.op == CODES and self.near_rows):
            return self._factors_home(call.args[0])
        if op(call.op).kind is not Kind.ELEMENTWISE or self._for_norm(i):
            return None
        for arg in call.args:
            source = self.maker.get(arg)
            if source is not None and source in self.group_of and self._joins(source, arg, call.op):
                return self.group_of[source]
        return None

    def _factors_home(self, value: Value) -> int | None:
        """The group of element-wise operators whose `value` is read by one operator alone."""
        source = self.maker.get(value)
        home = None if source is None else self.group_of.get(source)
        alone = len(self.readers[value]) == 1 and value not in self.function.results
        if home is None or not alone:
            return None
        kinds = {op(self.function.bindings[m].call.op).kind for m in self.groups[home]}
        return home if kinds == {Kind.ELEMENTWISE} else None

    def _may_wait(self, home: int, i: int) -> bool:
        """Whether a group may run as late as binding i: no other kernel needs its values sooner."""
        members = self.groups[home]
        outs = (o for m in members for o in self.function.bindings[m].outs)
        return not any(r < i for o in outs for r in self._outside(o, members))

    def _joins(self, source: int, value: Value, reader: str) -> bool:
        """Whether the only reader of `value`, made by `source`, may become its epilogue."""
        kind = op(self.function.bindings[source].call.op).kind
        alone = len(self.readers[value]) == 1 and value not in self.function.results
        epilogue = kind is Kind.ELEMENTWISE or self.function.bindings[source].call.op in PRODUCTS
        # Rows of a table in 16 bits are stored as the kernels after it read them.
        epilogue |= kind is Kind.INJECTIVE and reader == "cast"
        return alone and epilogue and not self._for_norm(source)

    def _for_norm(self, i: int) -> bool:
        """Whether binding i is an element-wise sum that a norm normalizes."""
        binding = self.function.bindings[i]
        if binding.call.op not in OPS or op(binding.call.op).kind is not Kind.ELEMENTWISE:
            return False
        out = binding.outs[0]
        return any(
            self.function.bindings[r].call.op in NORMS
            and self.function.bindings[r].call.args[0] is out
            for r in self.readers.get(out, [])
        )

    def caller(self) -> Function:
        """The Function with each group as one call, placed where its last member stood."""
        last = {max(members): g for g, members in enumerate(self.groups)}
        bindings: list[Binding] = []
        for i, binding in enumerate(self.function.bindings):
            if binding.call.op not in OPS:
                bindings.append(binding)
            elif i in last:
                primitive = self._primitive(last[i])
                self.primitives.append(primitive)
                bindings.append(Binding(primitive.results, Call(primitive.name, primitive.params)))
        return replace(self.function, bindings=tuple(bindings))

    def _primitive(self, g: int) -> Function:
        members = self.groups[g]
        needed = sorted({*members, *self._movers_of(members)})
        inside = [self._inside(i, members) for i in needed]
        made = {o for b in inside for o in b.outs}
        used = dict.fromkeys(a for b in inside for a in b.call.args if a not in made)
        weights = tuple(v for v in used if v in self.function.weights)
        params = tuple(v for v in used if v not in self.function.weights)
        results = tuple(
            o for i in members for o in self.function.bindings[i].outs if self._leaves(o, members)
        )
        heads = "_".join(self.function.bindings[i].call.op for i in members)
        name = f"{self.function.name}_{len(self.primitives)}_{heads}"
        return Function(name, params, weights, tuple(inside), results, primitive=True)

    def _inside(self, i: int, members: list[int]) -> Binding:
        """Binding i as it stands in a kernel of these members."""
        binding = self.function.bindings[i]
        if binding.call.op != CODES or len(members) == 1:
            return binding
        attrs = dict(binding.call.attrs) | {"kept": 1}
        return replace(binding, call=call(CODES, *binding.call.args, **attrs))

    def _movers_of(self, members: Iterable[int]) -> set[int]:
        """Bindings outside every group that members read, and what those read in turn."""
        found: set[int] = set()
        pending = list(members)
        while pending:
            for arg in self.function.bindings[pending.pop()].call.args:
                source = self.maker.get(arg)
                if source is None or source in self.group_of or source in found:
                    continue
                if self.function.bindings[source].call.op in OPS:
                    found.add(source)
                    pending.append(source)
        return found

    def _leaves(self, out: Value, members: list[int]) -> bool:
        """Whether a member's result is read outside its group."""
        return out in self.function.results or any(True for _ in self._outside(out, members))

    def _outside(self, value: Value, members: list[int]) -> Iterator[int]:
        """Bindings other than `members` that read a value, movers' readers in their place."""
        for r in self.readers.get(value, []):
            binding = self.function.bindings[r]
            if r in members:
                continue
            if binding.call.op in OPS and self._moves(r):
                for out in binding.outs:
                    yield from self._outside(out, members)
            else:
                yield r
