"""Rotate queries and keys where keys are written to the cache: one kernel where there were three.

Knows the operators of attention and nothing of how the kernel does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sterna.ir.graph import Binding, Call, Function, IRModule, Value
from sterna.passes.def_use import makers, readers
from sterna.passes.fuse import MOVERS


def fuse_rope_append(module: IRModule, most_buffers: int | None = None) -> IRModule:
    """Make rope(q), rope(k) and the kv_append of k one rope_append, which attention then reads.

    They stay apart where the one kernel would bind more than `most_buffers`: queries and keys that
    were normalized lie in buffers of their own.

    Before:
        n = dim(1, 64)

        @function
        def layer(q: f32[n, 8], k: f32[n, 4], v: f32[n, 4], cos: f32[n, 2], sin: f32[n, 2],
                  kv: f16[9, 1, 2, 1, 64], positions: i32[n], seq_ids: i32[n],
                  page_indptr: i32[3], page_table: i32[9],
                  start: i32[n], size: i32[n], seq: i32[n]):
            turned: f32[n, 8] = rope(q, cos, sin, head_dim=4)
            key: f32[n, 4] = rope(k, cos, sin, head_dim=4)
            cache: f16[9, 1, 2, 1, 64] = kv_append(
                key, v, kv, positions, seq_ids, page_indptr, page_table, head_dim=4)
            out: f32[n, 8] = attention(
                turned, cache, positions, page_indptr, page_table, start, size, seq,
                head_dim=4, scale=0.5, sinks=0, window=-1)
            return out, cache

        entry("layer")
    After:
        n = dim(1, 64)

        @function
        def layer(q: f32[n, 8], k: f32[n, 4], v: f32[n, 4], cos: f32[n, 2], sin: f32[n, 2],
                  kv: f16[9, 1, 2, 1, 64], positions: i32[n], seq_ids: i32[n],
                  page_indptr: i32[3], page_table: i32[9],
                  start: i32[n], size: i32[n], seq: i32[n]):
            turned, cache = outs(
                rope_append(q, k, v, cos, sin, kv, positions, seq_ids, page_indptr, page_table,
                            head_dim=4),
                f32[n, 8], f16[9, 1, 2, 1, 64])
            out: f32[n, 8] = attention(
                turned, cache, positions, page_indptr, page_table, start, size, seq,
                head_dim=4, scale=0.5, sinks=0, window=-1)
            return out, cache

        entry("layer")
    """
    return module.map(lambda function: _fused(function, most_buffers))


@dataclass(frozen=True, slots=True)
class _Match:
    """The three bindings that become one."""

    query: Binding
    key: Binding
    append: Binding

    def fused(self) -> Binding:
        (_, v, *cache_and_index) = self.append.call.args
        (q, cosine, sine), k = self.query.call.args, self.key.call.args[0]
        args = (q, k, v, cosine, sine, *cache_and_index)
        outs = (self.query.outs[0], self.append.outs[0])
        return Binding(outs, Call("rope_append", args, self.query.call.attrs))


def _fused(function: Function, most_buffers: int | None) -> Function:
    found = [_match(function, b) for b in function.bindings if b.call.op == "kv_append"]
    small = (m for m in found if m is not None and _fits(function, m.fused(), most_buffers))
    matches = {m.append: m for m in small}
    gone = {b for m in matches.values() for b in (m.query, m.key)}
    bindings = (
        matches[b].fused() if b in matches else b for b in function.bindings if b not in gone
    )
    return replace(function, bindings=tuple(bindings))


def _fits(function: Function, fused: Binding, most_buffers: int | None) -> bool:
    """Whether a kernel may bind what the binding reads and makes; it changes the cache in place."""
    made = makers(function)

    def stored(value: Value) -> Value:
        maker = made.get(value)
        return stored(maker.call.args[0]) if maker and maker.call.op in MOVERS else value

    made_anew = len(fused.outs) - 1
    return (
        most_buffers is None
        or len({stored(value) for value in fused.call.args}) + made_anew <= most_buffers
    )


def _match(function: Function, append: Binding) -> _Match | None:
    made, read = makers(function), readers(function)
    order = {binding: i for i, binding in enumerate(function.bindings)}
    key = _rope(made, append.call.args[0])
    if key is None or len(read[key.outs[0]]) > 1 or key.outs[0] in function.results:
        return None  # somebody else reads the rotated key
    for reader, position in read.get(append.outs[0], []):
        query = _rope(made, reader.call.args[0])
        if reader.call.op != "attention" or position != 1 or query is None:
            continue
        early = (b for b, _ in read[query.outs[0]] if order[b] < order[append])
        if order[query] < order[append] and not any(early) and _alike(query, key, append):
            return _Match(query, key, append)
    return None


def _rope(made: dict[Value, Binding], value: Value) -> Binding | None:
    """The rope that made a value."""
    binding = made.get(value)
    return binding if binding is not None and binding.call.op == "rope" else None


def _alike(query: Binding, key: Binding, append: Binding) -> bool:
    """One rotation for both, heads of one size."""
    turns = query.call.args[1:] == key.call.args[1:] and query.call.attrs == key.call.attrs
    sizes = {b.call.attr("head_dim") for b in (query, key, append)}
    return query is not key and turns and len(sizes) == 1
