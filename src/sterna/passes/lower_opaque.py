"""A primitive Function headed by an operator with a loop program of its own becomes a PrimFunc.

Operators that move values (slices of a stacked projection, biases added to it) are substituted
into the program's loads, as in any other kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sterna.base.artifact import QUERY_TILE
from sterna.base.dtype import F32, I32
from sterna.base.errors import InvalidIR
from sterna.base.target import Target
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Expr, Load, Var, const_value, wrap
from sterna.ir.graph import Attr, Binding, Function, Value
from sterna.ir.loop import PrimFunc, Stmt, Store
from sterna.ir.rewrite import replace_loads, substitute, visit
from sterna.ir.simplify import simplify_stmt
from sterna.kernels.attention import AttentionSpec, attention_split, attention_tiles
from sterna.kernels.attention_alone import attention_alone
from sterna.kernels.attention_groups import (
    attention_split_groups,
    attention_tiles_groups,
    group_queries,
)
from sterna.kernels.delta import Delta, delta_scan
from sterna.kernels.experts import ExpertSpec, grouped_experts
from sterna.kernels.kv_cache import LAYER, CacheLayout, StepIndex, kv_append, rope_append
from sterna.kernels.recurrence import Scan, States, causal_conv, ssm_scan, token_shift
from sterna.ops import Kind, op
from sterna.passes.lower import computes_of, inputs
from sterna.schedule.apply import inline_into
from sterna.schedule.choose import attention_vectors

PIECE = 128  # cached tokens that attention takes as one piece, at least
MOST_PIECES = 64
_CACHE_DIMS = 5
_INDEX = 4  # tensors that say where a recurrent operator's tokens and states are
_STATE_LANES = 16
MOST_HEADS = 16  # query heads of a work item: what it keeps of each stays in a core's cache


@dataclass(frozen=True, slots=True)
class Program:
    """A loop program with the value or workspace behind each parameter.

    `aliases` maps a result to the argument that it changes in place.
    """

    func: PrimFunc
    args: tuple[Value | Buffer, ...]
    aliases: Mapping[Value, Value]


@dataclass(frozen=True, slots=True)
class Setting:
    """What loop programs need to know beyond their operands."""

    dims: tuple[Var, ...]
    page_size: int
    context: int  # most cached tokens of a sequence
    split: bool  # few queries: share the pieces of one among threads
    groups: bool  # the target runs work groups
    barriers: bool  # whose threads may wait for each other
    shared_bytes: int  # that a work group may have
    attention_vectors: int  # see AttentionSpec

    @staticmethod
    def of(
        target: Target, dims: tuple[Var, ...], page_size: int, context: int, *, split: bool
    ) -> Setting:
        return Setting(
            dims,
            page_size,
            context,
            split=split,
            groups=target.group_threads > 0,
            barriers=target.barriers,
            shared_bytes=target.shared_bytes,
            attention_vectors=attention_vectors(target),
        )


def is_opaque(function: Function, setting: Setting) -> bool:
    """Whether a loop program stands for the Function, and not a Group that a rule schedules.

    Experts are taken one after another where there are tokens enough to share them.
    """
    if function.bindings[-1].call.op == "expert_matmul":
        return not (setting.split or setting.groups)
    return any(op(b.call.op).kind is Kind.OPAQUE for b in function.bindings)


def lower_opaque(function: Function, setting: Setting) -> Program:
    """The loop program of a primitive Function whose last operator is opaque."""
    *movers, head = function.bindings
    logical = {v: Buffer(v.name, v.dtype, v.shape) for v in inputs(function)}
    computes, known = computes_of(movers, logical)
    outs = {o: Buffer(o.name, o.dtype, o.shape) for o in head.outs}
    build = _BUILDERS.get(head.call.op)
    if build is None:
        raise InvalidIR(f"operator {head.call.op} has no loop program")
    args = [known[a] for a in head.call.args]
    built = build(_Request(function.name, head, args, outs, setting))
    body, dims = _inline_movers(built.func.body, computes), built.func.dims
    if any(len(a.shape) == _CACHE_DIMS and const_value(a.shape[1]) == 1 for a in args):
        # A cache of one layer is that of every layer: what looks at an image keeps nothing.
        body = simplify_stmt(substitute(body, {LAYER: wrap(0)}))
        dims = tuple(d for d in dims if d is not LAYER)
    func = PrimFunc(built.func.name, (), dims, body)
    values = {b: v for v, b in logical.items()} | {outs[o]: o for o in built.written}
    values |= {view: values[whole] for view, whole in built.views}
    kept = _buffers(func.body)
    params = [p for p in (*logical.values(), *built.func.params) if p in kept]
    ordered = tuple(dict.fromkeys(params))
    aliases = dict(built.changed)
    bound = tuple(values.get(p, p) for p in ordered)
    return Program(PrimFunc(func.name, ordered, func.dims, func.body), bound, aliases)


@dataclass(frozen=True, slots=True)
class _Request:
    """An opaque operator's binding with buffers for what it reads and makes."""

    name: str
    head: Binding
    args: list[Buffer]
    outs: Mapping[Value, Buffer]
    setting: Setting

    @property
    def attrs(self) -> dict[str, Attr]:
        return dict(self.head.call.attrs)

    def cache(self, buffer: Buffer, sharing: int = 1) -> CacheLayout:
        head_dim = _integer(self.attrs, "head_dim")
        return CacheLayout.over(buffer, self.setting.page_size, head_dim, sharing)

    def states(self) -> States:
        """Where a recurrent operator keeps its states: its last arguments say it."""
        return States(self.args[-1 - _INDEX], _integer(self.attrs, "offset"), *self.args[-_INDEX:])

    @property
    def lanes(self) -> int:
        """Channels that a recurrent operator takes side by side in one work item."""
        return 1 if self.setting.groups else _STATE_LANES


@dataclass(frozen=True, slots=True)
class _Built:
    func: PrimFunc
    written: tuple[Value, ...]  # results with a buffer of their own
    changed: tuple[tuple[Value, Value], ...] = ()  # result, argument changed in place
    views: tuple[tuple[Buffer, Buffer], ...] = ()  # a parameter that is the memory of an argument


def _inline_movers(body: Stmt, computes: list[Compute]) -> Stmt:
    producers: dict[Buffer, Compute] = {}
    for compute in computes:
        producers[compute.out] = inline_into(compute, producers)

    def rule(load: Load) -> Expr | None:
        producer = producers.get(load.buffer)
        if producer is None:
            return None
        return substitute(
            producer.body, {a.var: i for a, i in zip(producer.axes, load.index, strict=True)}
        )

    return simplify_stmt(replace_loads(body, rule))


def _buffers(body: Stmt) -> set[Buffer]:
    return {n.buffer for n in visit(body) if isinstance(n, Load | Store)}


def _integer(attrs: Mapping[str, Attr], name: str) -> int:
    value = attrs[name]
    if not isinstance(value, int):
        raise InvalidIR(f"attribute {name} must be an integer")
    return value


def _kv_append(request: _Request) -> _Built:
    *rows, cache, positions, seq_ids, page_indptr, page_table = request.args
    layout, head = request.cache(cache), request.head
    index = StepIndex(positions, seq_ids, page_indptr, page_table)
    func = kv_append(request.name, tuple(rows), layout, index, request.setting.dims)
    return _Built(func, (), ((head.outs[0], head.call.args[len(rows)]),), layout.views)


def _rope_append(request: _Request) -> _Built:
    q, k, v, cosine, sine, cache, *index = request.args
    rotated, changed = request.head.outs
    layout = request.cache(cache)
    func = rope_append(
        request.name,
        (q, k, v),
        (cosine, sine),
        request.outs[rotated],
        layout,
        StepIndex(*index),
        request.setting.dims,
        interleaved=request.attrs.get("interleaved") is True,
    )
    return _Built(func, (rotated,), ((changed, request.head.call.args[5]),), layout.views)


def _attention(request: _Request) -> _Built:
    attrs, setting, head = request.attrs, request.setting, request.head
    q, cache, positions, page_indptr, page_table, start, size, seq, *sink = request.args
    dim = _integer(attrs, "head_dim")
    heads = int(const_value(q.shape[1]) or 0) // dim
    group = heads // int(const_value(cache.shape[3]) or 1)
    piece, layout = piece_length(setting.context), request.cache(cache, _sharing(group))
    out = request.outs[head.outs[0]]
    spec = AttentionSpec(
        heads=heads,
        scale=float(attrs["scale"]),  # type: ignore[arg-type]
        window=_integer(attrs, "window"),
        sinks=_integer(attrs, "sinks"),
        piece=piece,
        pieces=-(-setting.context // piece),
        q=q,
        cache=layout,
        positions=positions,
        page_indptr=page_indptr,
        page_table=page_table,
        tile_start=start,
        tile_size=size,
        tile_seq=seq,
        out=out,
        causal=attrs.get("causal") is not False,
        softcap=float(attrs.get("softcap", 0.0)),  # type: ignore[arg-type]
        value_dim=int(const_value(out.shape[1]) or 0) // heads,
        chunk=_integer(attrs, "chunk") if "chunk" in attrs else 0,
        sink=sink[0] if sink else None,
        vectors=setting.attention_vectors,
    )
    if setting.groups and not setting.barriers:
        func = attention_alone(request.name, spec, setting.dims, QUERY_TILE)
        return _Built(func, head.outs, views=layout.views)
    if not setting.split and setting.groups:
        queries = group_queries(spec, QUERY_TILE, setting.shared_bytes)
        func = attention_tiles_groups(request.name, spec, setting.dims, QUERY_TILE, queries)
        return _Built(func, head.outs, views=layout.views)
    if not setting.split:
        func = attention_tiles(request.name, spec, setting.dims, QUERY_TILE)
        return _Built(func, head.outs, views=layout.views)
    shape = (q.shape[0], wrap(spec.heads), wrap(spec.pieces), wrap(spec.out_dim + 2))
    partial = Buffer("partial", F32, shape)
    split = attention_split_groups if setting.groups else attention_split
    func = split(request.name, spec, setting.dims, partial)
    return _Built(func, head.outs, views=layout.views)


def _expert_matmul(request: _Request) -> _Built:
    x, index, weight, *bias = request.args
    (result,) = request.head.outs
    spec = ExpertSpec(
        experts=_integer(request.attrs, "experts"),
        x=x,
        index=index,
        weight=weight,
        bias=bias[0] if bias else None,
        out=request.outs[result],
    )
    order = Buffer("order", I32, (spec.pairs,))
    starts = Buffer("starts", I32, (wrap(spec.experts), wrap(2)))
    func = grouped_experts(request.name, spec, request.setting.dims, order, starts)
    return _Built(func, (result,))


def _causal_conv(request: _Request) -> _Built:
    x, weight, *rest = request.args
    bias = rest[: -1 - _INDEX]
    out, changed = request.head.outs
    func = causal_conv(
        request.name,
        (x, weight, bias[0] if bias else None),
        request.outs[out],
        request.states(),
        request.setting.dims,
        request.lanes,
    )
    return _Built(func, (out,), ((changed, request.head.call.args[-1 - _INDEX]),))


def _ssm_scan(request: _Request) -> _Built:
    out, changed = request.head.outs
    x, b, c, dt, a_log, d = request.args[:6]
    heads, state = _integer(request.attrs, "heads"), _integer(request.attrs, "state")
    scan = Scan(x, b, c, dt, a_log, d, request.outs[out], heads, state)
    func = ssm_scan(request.name, scan, request.states(), request.setting.dims, request.lanes)
    return _Built(func, (out,), ((changed, request.head.call.args[-1 - _INDEX]),))


def _delta_scan(request: _Request) -> _Built:
    out, changed = request.head.outs
    q, k, v, w, a, b = request.args[:6]
    delta = Delta(q, k, v, w, a, b, request.outs[out], _integer(request.attrs, "heads"))
    func = delta_scan(request.name, delta, request.states(), request.setting.dims, request.lanes)
    return _Built(func, (out,), ((changed, request.head.call.args[-1 - _INDEX]),))


def _token_shift(request: _Request) -> _Built:
    out, changed = request.head.outs
    func = token_shift(
        request.name,
        request.args[0],
        request.outs[out],
        request.states(),
        request.setting.dims,
        request.lanes,
    )
    return _Built(func, (out,), ((changed, request.head.call.args[-1 - _INDEX]),))


def _sharing(group: int) -> int:
    """Work items that share the query heads of one kv head, so that each has MOST_HEADS at most."""
    return next(n for n in range(1, group + 1) if group % n == 0 and group // n <= MOST_HEADS)


def piece_length(context: int) -> int:
    """Tokens in a piece: a multiple of PIECE such that a context has MOST_PIECES or fewer."""
    return PIECE * max(1, -(-context // (PIECE * MOST_PIECES)))


_BUILDERS: Mapping[str, Callable[[_Request], _Built]] = {
    "kv_append": _kv_append,
    "rope_append": _rope_append,
    "attention": _attention,
    "expert_matmul": _expert_matmul,
    "causal_conv": _causal_conv,
    "ssm_scan": _ssm_scan,
    "delta_scan": _delta_scan,
    "token_shift": _token_shift,
}
