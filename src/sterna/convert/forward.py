"""A model computed in numpy from its graph, weight by weight: what calibration looks at.

In: a traced module, with float32 weights or with packed ones, and documents as token ids. Out:
logits of every position. The caller gives each matrix when its product is reached and sees what it
is multiplied with, so weights need never be in memory together, and one that has just been
quantized may take its place at once. Operators mean what their compute rules say, results have the
graph's dtypes; products of plain weights, and attention, run in float32 in numpy's BLAS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import ROPE_POSITIONS
from sterna.base.errors import UnsupportedModel
from sterna.convert.recurrence import WALKS
from sterna.ir.evaluate import evaluate_compute
from sterna.ir.expr import Buffer, Var
from sterna.ir.graph import Binding, Call, Function, IRModule, Value
from sterna.nn.decoder import CausalLM, Limits, trace_causal_lm
from sterna.ops import op
from sterna.ops.op import result_names

Array = NDArray[Any]
Documents = Sequence[Sequence[int]]

# The weight of that name as float32; for a product, what it is multiplied with comes along.
WeightOf = Callable[[str, Array | None], Array]

# What a product with the weight of that name reads of its other factor [n, K].
FactorOf = Callable[[str, Array], Array]
_INDEX = 4  # of a recurrent operator's arguments: where tokens and states are


@dataclass(frozen=True, slots=True)
class _Cache:
    """Keys and values [n, kv_heads, head_dim] of the layer at hand: nothing older is read."""

    keys: Array
    values: Array


def all_logits(
    model: CausalLM,
    documents: Documents,
    weight_of: WeightOf,
    factor_of: FactorOf = lambda name, x: x,
) -> Array:
    """Logits f32 [tokens, vocab] of documents computed side by side, each on its own.

    `model` is built with float32 weights. Raises UnsupportedModel for an operator that is written
    by hand and not known here.
    """
    count = sum(map(len, documents))
    module = trace_causal_lm(model, Limits(count, len(documents), count))
    return graph_logits(module, documents, weight_of, factor_of)


def graph_logits(
    module: IRModule,
    documents: Documents,
    weight_of: WeightOf,
    factor_of: FactorOf = lambda name, x: x,
) -> Array:
    """The same of a module, as traced or after passes that leave keys apart from their rotation.

    Parts of packed weights are asked for in their own dtypes, by their own names.
    """
    tokens = [token for document in documents for token in document]
    count = len(tokens)
    sizes = {"n": count, "b": len(documents), "r": count, "p": 1, "t": 1, "pages": 1}
    run = _Forward(module, weight_of, factor_of, {d: sizes[d.name] for d in module.dims})
    lengths = [len(document) for document in documents]
    ends = np.cumsum(lengths)
    given: dict[str, Any] = {
        "tokens": np.array(tokens, np.int32),
        "positions": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "seq_ids": np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        "logit_rows": np.arange(count, dtype=np.int32),
        "kv_cache": None,
    }
    given[ROPE_POSITIONS] = np.repeat(given["positions"][:, None], 3, 1)
    run.ends = [int(end) for end in ends]
    entry = module.functions[module.entry]
    unused = np.zeros(0, np.int32)
    result: Array = run.function(entry, [given.get(p.name, unused) for p in entry.params], 0)[0]
    return result


class _Forward:
    def __init__(
        self, module: IRModule, weight_of: WeightOf, factor_of: FactorOf, dims: dict[Var, int]
    ) -> None:
        self.module = module
        self.weight_of = weight_of
        self.factor_of = factor_of
        self.dims = dims
        self.ends: list[int] = []

    def function(self, function: Function, args: list[Any], layer: int) -> list[Any]:
        values: dict[Value, Any] = dict(zip(function.params, args, strict=True))
        names = {w: w.name.replace("{i}", str(layer)) for w in function.weights}
        last = {a: i for i, b in enumerate(function.bindings) for a in b.call.args}
        for i, binding in enumerate(function.bindings):
            results = self.binding(binding, values, names, layer)
            values.update(zip(binding.outs, results, strict=True))
            for arg in binding.call.args:
                if last[arg] == i and arg not in function.results:
                    values.pop(arg, None)
        return [values[result] for result in function.results]

    def binding(
        self, binding: Binding, values: dict[Value, Any], names: dict[Value, str], layer: int
    ) -> list[Any]:
        call = binding.call
        if call.op == "matmul" and call.args[1] in names:
            x, name = values[call.args[0]], names[call.args[1]]
            weight = self.weight_of(name, x)
            product = _f32(self.factor_of(name, x)) @ _f32(weight).T
            return [product.astype(binding.outs[0].dtype.numpy, copy=False)]
        args = [self.weight(names[a]) if a in names else values[a] for a in call.args]
        callee = self.module.functions.get(call.op)
        if callee is not None:
            return self.repeated(callee, call, args, layer)
        if call.op == "expert_matmul":
            made = _of_experts(_integer(call, "experts"), *args)
            return [made.astype(binding.outs[0].dtype.numpy, copy=False)]
        if call.op == "take":
            return [args[0][args[1]]]
        if op(call.op).compute is not None:
            return self.computed(binding, args)
        if call.op == "kv_append":
            dim = _integer(call, "head_dim")
            rows = [a.reshape(len(a), -1, dim) for a in args[:-5]]
            return [_Cache(rows[0], rows[-1])]
        if call.op == "attention":
            return [self.attention(call, args[0], args[1], *args[8:])]
        if call.op in WALKS:
            return [self.walked(call, args), None]
        raise UnsupportedModel(
            f"the operator {call.op} is not computed in numpy, so this model can be neither "
            "calibrated nor measured at conversion; convert it without"
        )

    def weight(self, name: str) -> Array:
        constant = self.module.constants.get(name)
        return self.weight_of(name, None) if constant is None else constant

    def repeated(self, callee: Function, call: Call, args: list[Any], layer: int) -> list[Any]:
        attrs = dict(call.attrs)
        first = layer + int(attrs.get("first", 0)) + int(attrs.get("offset", 0))  # type: ignore[arg-type]
        stride = int(attrs.get("stride", 1))  # type: ignore[arg-type]
        results = len(callee.results)
        carried, rest = args[:results], args[results:]
        for i in range(int(attrs.get("repeat", 1))):  # type: ignore[arg-type]
            carried = self.function(callee, [*carried, *rest], first + stride * i)
        return carried

    def computed(self, binding: Binding, args: list[Any]) -> list[Array]:
        call = binding.call
        buffers = tuple(Buffer(f"a{i}", a.dtype, a.shape) for i, a in enumerate(call.args))
        known = dict(zip(buffers, args, strict=True))
        types = tuple(out.type for out in binding.outs)
        rule = op(call.op).compute
        assert rule is not None, "checked by the caller"
        for stage in rule("out", buffers, types, dict(call.attrs)):
            known[stage.out] = evaluate_compute(stage, known, self.dims)
        by_name = {buffer.name: array for buffer, array in known.items()}
        return [by_name[name] for name in result_names("out", len(binding.outs))]

    def walked(self, call: Call, args: list[Any]) -> Array:
        """A recurrent operator of each document, from a state of zero."""
        rows, walk = WALKS[call.op]
        learned = args[rows : -1 - _INDEX]
        parts, start = [], 0
        for end in self.ends:
            own = [array[start:end] for array in args[:rows]]
            parts.append(walk(dict(call.attrs), own, *learned))
            start = end
        return np.concatenate(parts)

    def attention(self, call: Call, q: Array, cache: Any, sink: Array | None = None) -> Array:
        """softmax(scale * q k^T) v within each document, causal, windowed, bent."""
        attrs: dict[str, Any] = dict(call.attrs)
        known = {"head_dim", "scale", "window", "sinks", "softcap", "causal", "chunk",
                 "value_dim"}  # fmt: skip
        if set(attrs) - known:
            raise UnsupportedModel(
                f"attention with {sorted(set(attrs) - known)[0]} is not computed in numpy, so this "
                "model can be neither calibrated nor measured at conversion"
            )
        dim = _integer(call, "head_dim")
        queries = q.reshape(len(q), -1, dim)
        group = queries.shape[1] // cache.keys.shape[1]
        cache = _Cache(cache.keys, cache.values[..., : attrs.get("value_dim", dim)])
        out = np.empty((*queries.shape[:2], cache.values.shape[-1]), q.dtype)
        start = 0
        for end in self.ends:
            keys, values = (
                np.repeat(_f32(part[start:end]), group, axis=1).transpose(1, 2, 0)
                for part in (cache.keys, cache.values)
            )
            scores = _f32(queries[start:end]).transpose(1, 0, 2) @ keys * np.float32(attrs["scale"])
            cap = float(attrs.get("softcap", 0.0))
            if cap:
                scores = cap * np.tanh(scores / cap)
            scores = np.where(_seen(end - start, attrs), scores, -np.inf)
            if sink is not None:
                own = np.broadcast_to(sink.reshape(-1, 1, 1), (*scores.shape[:2], 1))
                scores = np.concatenate((scores, own.astype(scores.dtype)), axis=-1)
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            shares /= shares.sum(axis=-1, keepdims=True)
            shares = shares[..., : end - start]
            out[start:end] = (shares @ values.transpose(0, 2, 1)).transpose(1, 0, 2)
            start = end
        return out.reshape(len(q), -1)


def _of_experts(
    experts: int, x: Array, index: Array, weight: Array, bias: Array | None = None
) -> Array:
    """The operator expert_matmul, expert by expert."""
    size, depth = len(weight) // experts, weight.shape[1]
    given = np.broadcast_to(_f32(x).reshape(len(x), -1, depth), (*index.shape, depth))
    out = np.empty((*index.shape, size), np.float32)
    for e in np.unique(index):
        own, at = slice(e * size, (e + 1) * size), index == e
        out[at] = given[at] @ _f32(weight[own]).T + (0 if bias is None else _f32(bias[own]))
    return out.reshape(len(x), -1)


def _seen(count: int, attrs: dict[str, Any]) -> Array:
    """[query, key]: whether a query attends to a key of the same document."""
    query, key = np.arange(count)[:, None], np.arange(count)[None, :]
    window, sinks = int(attrs.get("window", -1)), int(attrs.get("sinks", 0))
    recent = (query - key < window) | (key < sinks) if window > 0 else True
    chunk = int(attrs.get("chunk", 0)) or count
    before = key <= query if attrs.get("causal", True) else key < count
    seen: Array = before & recent & (key // chunk == query // chunk)
    return seen


def _f32(array: Array) -> Array:
    return array.astype(np.float32, copy=False)


def _integer(call: Call, name: str) -> int:
    return int(dict(call.attrs)[name])  # type: ignore[arg-type]
