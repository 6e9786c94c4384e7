"""A graph evaluated in numpy: the meaning of a module, whatever passes made of it.

In: a module, arrays for its entry's parameters, and arrays for weights by name, layers spelled out.
Out: the entry's results. Operators are evaluated by their compute rule; those that have none by the
few lines here, written from what the op table says of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import F32
from sterna.ir.evaluate import evaluate_compute
from sterna.ir.expr import Buffer, Expr, Var
from sterna.ir.graph import Binding, Call, Function, IRModule, TensorType
from sterna.ops import op

Array = NDArray[np.generic]


@dataclass(slots=True)
class _Run:
    module: IRModule
    weights: Mapping[str, Array]
    dims: dict[Var, int]

    def function(self, function: Function, args: list[Array], layer: int = 0) -> list[Array]:
        values = dict(zip(function.params, args, strict=True))
        for weight in function.weights:
            values[weight] = self.weight(weight.name.replace("{i}", str(layer)), weight.type)
        for binding in function.bindings:
            results = self.call(binding, [values[arg] for arg in binding.call.args], layer)
            values.update(zip(binding.outs, results, strict=True))
        return [values[result] for result in function.results]

    def weight(self, name: str, kind: TensorType) -> Array:
        found = self.module.constants.get(name)
        found = self.weights[name] if found is None else found
        assert found.shape == tuple(map(self.size, kind.shape)), name
        assert found.dtype == kind.dtype.numpy, name
        return found

    def size(self, extent: Expr) -> int:
        return self.dims[extent] if isinstance(extent, Var) else int(extent.value)

    def call(self, binding: Binding, args: list[Array], layer: int) -> list[Array]:
        call = binding.call
        called = self.module.functions.get(call.op)
        if called is not None and called.primitive:
            return self.function(called, args, layer)
        if called is not None:
            carried, rest = args[: len(binding.outs)], args[len(binding.outs) :]
            for i in range(dict(call.attrs).get("repeat", 1)):
                carried = self.function(called, [*carried, *rest], i)
            return carried
        if op(call.op).compute is None:
            return OPAQUE[call.op](call, args, layer)
        return [self.computed(binding, args)]

    def computed(self, binding: Binding, args: list[Array]) -> Array:
        call = binding.call
        buffers = tuple(Buffer(f"a{i}", a.dtype, a.shape) for i, a in enumerate(call.args))
        known = dict(zip(buffers, args, strict=True))
        types = tuple(out.type for out in binding.outs)
        for stage in op(call.op).compute("out", buffers, types, dict(call.attrs)):
            known[stage.out] = evaluate_compute(stage, known, self.dims)
        return known[stage.out]


def evaluate(
    module: IRModule, params: Mapping[str, Array], weights: Mapping[str, Array], **dims: int
) -> list[Array]:
    """The results of the module's entry; `dims` by name."""
    entry = module.functions[module.entry]
    sizes = {var: dims[var.name] for var in module.dims}
    return _Run(module, weights, sizes).function(entry, [params[p.name] for p in entry.params])


def _rotated(x: Array, cosine: Array, sine: Array, head_dim: int) -> Array:
    heads = x.reshape(len(x), -1, head_dim).copy()
    half = cosine.shape[1]
    low, high = heads[..., :half].copy(), heads[..., half : 2 * half].copy()
    heads[..., :half] = low * cosine[:, None] - high * sine[:, None]
    heads[..., half : 2 * half] = high * cosine[:, None] + low * sine[:, None]
    return heads.reshape(x.shape)


def _kv_append(call: Call, args: list[Array], layer: int) -> list[Array]:
    k, v, cache, positions, seq_ids, page_indptr, page_table = args
    dim, cache = call.attr("head_dim"), cache.copy()
    keys, values = _views(cache, layer, dim)
    size = keys.shape[-1]
    for token, (position, seq) in enumerate(zip(positions, seq_ids, strict=True)):
        page, slot = page_table[page_indptr[seq] + position // size], position % size
        keys[page, :, :, slot] = k[token].reshape(-1, dim)
        values[page, :, slot] = v[token].reshape(-1, dim)
    return [cache]


def _rope_append(call: Call, args: list[Array], layer: int) -> list[Array]:
    q, k, v, cosine, sine, *rest = args
    q, k = (_rotated(x, cosine, sine, call.attr("head_dim")) for x in (q, k))
    return [q, *_kv_append(call, [k, v, *rest], layer)]


def _attention(call: Call, args: list[Array], layer: int) -> list[Array]:
    q, cache, positions, page_indptr, page_table, tile_start, tile_size, tile_seq = args
    dim, out = call.attr("head_dim"), np.zeros(q.shape, F32.numpy)
    for start, count, seq in zip(tile_start, tile_size, tile_seq, strict=True):
        pages = page_table[page_indptr[seq] : page_indptr[seq + 1]]
        keys, values = (view[pages].astype(np.float64) for view in _views(cache, layer, dim))
        keys = keys.transpose(1, 0, 3, 2).reshape(keys.shape[1], -1, dim)
        values = values.transpose(1, 0, 2, 3).reshape(keys.shape)
        for token in range(start, start + count):
            seen = positions[token] + 1
            query = q[token].reshape(len(keys), -1, dim)
            scores = query @ keys[:, :seen].transpose(0, 2, 1) * call.attr("scale")
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = shares @ values[:, :seen] / shares.sum(-1, keepdims=True)
            out[token] = mixed.reshape(-1)
    return [out]


def _views(cache: Array, layer: int, dim: int) -> tuple[Array, Array]:
    """Keys [pages, kv_heads, head_dim, slots] and values [pages, kv_heads, slots, head_dim]."""
    pages, _, _, heads, _ = cache.shape
    keys, values = cache[:, layer, 0], cache[:, layer, 1]
    return keys.reshape(pages, heads, dim, -1), values.reshape(pages, heads, -1, dim)


OPAQUE = {"kv_append": _kv_append, "rope_append": _rope_append, "attention": _attention}
