"""Grouped-query attention over the paged KV cache, with rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from sterna.base.dtype import DType
from sterna.nn.linear import Linear
from sterna.nn.module import Module, Parameter
from sterna.nn.norm import Norm
from sterna.nn.trace import Tensor, Trace

# How a checkpoint holds the projections: three matrices; one with all of q, then k, then v; one
# in which each group of query heads is followed by its key head and its value head; or four blocks
# of q, v and k.
Projections = Literal["apart", "joined", "grouped", "blocks"]


@dataclass(frozen=True, slots=True)
class Step:
    """What a layer may know of the batch: index tensors of `runtime.executable.StepInput`.

    `angles` are cosine and sine, [n, rotary_dim / 2] each, of every rotary table in turn. The
    cache itself travels apart, since every append makes a new one. `carried` is what layers hand on
    beside hidden states, where they do: what the last layer with a third result gave.
    """

    positions: Tensor  # [n]
    seq_ids: Tensor  # [n]
    page_indptr: Tensor  # [b + 1]
    page_table: Tensor  # [p]
    tile_start: Tensor  # [t] first token of each query tile
    tile_size: Tensor  # [t]
    tile_seq: Tensor  # [t]
    seq_indptr: Tensor | None = None  # [b + 1] first token of each sequence, if it has a state
    slot_indptr: Tensor | None = None  # [b + 1] 0, 1, 2 ...; with `slots`
    slots: Tensor | None = None  # [b] where states are, if others have a KV cache
    ends: Tensor | None = None  # [n] last position of each token's sequence, if all see all
    angles: tuple[Tensor, ...] = ()
    carried: Tensor | None = None  # [n, ...]

    def tensors(self) -> tuple[Tensor, ...]:
        """What is carried first: a result of that place is the next layer's."""
        carried = () if self.carried is None else (self.carried,)
        return (*carried, *self._index().values(), *self.angles)

    def _index(self) -> dict[str, Tensor]:
        others = ("angles", "carried")
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in others}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def inside(self, trace: Trace) -> Step:
        """The same tensors as parameters of another Function."""
        own = self.carried
        carried = None if own is None else trace.param("carried", own.shape, own.dtype)
        index = {name: trace.param(name, t.shape, t.dtype) for name, t in self._index().items()}
        angles = tuple(
            trace.param(
                ("cosine", "sine")[i % 2] + (f"_{i // 2}" if i > 1 else ""), a.shape, a.dtype
            )
            for i, a in enumerate(self.angles)
        )
        return type(self)(**index, angles=angles, carried=carried)

    def states(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What operators of ops.recurrence take last: where tokens and states are."""
        assert self.seq_indptr is not None, "a recurrent model's step says where sequences begin"
        if self.slots is None or self.slot_indptr is None:
            return self.seq_indptr, self.positions, self.page_indptr, self.page_table
        return self.seq_indptr, self.positions, self.slot_indptr, self.slots

    def rope(self, table: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of a table."""
        return self.angles[2 * table], self.angles[2 * table + 1]


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Sizes and variants. `window` -1 attends to all; `sinks` tokens are always attended to.

    `scale` None is 1 / sqrt(head_dim); scores are bent by cap * tanh(score / cap) where `softcap`
    is not 0. `rope` is the table of angles, None for a layer without positions; `interleaved`
    pairs neighbouring dims where others pair the halves of a head. `clip` bounds q, k and v.
    With `head_sinks` each head has learned a score for a token without a value that all see; with
    a `chunk` tokens see their own chunk of so many positions alone. `temper` (floor, scale)
    multiplies a query at position p by 1 + scale * log(1 + (p + 1) // floor). With an `output_gate`
    q_proj gives each head twice its dims, and sigmoids of the second half weigh what it attends to.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    qkv_bias: bool = False
    output_bias: bool = False
    window: int = -1
    sinks: int = 0
    scale: float | None = None
    softcap: float = 0.0
    rope: int | None = 0
    interleaved: bool = False
    clip: float = 0.0
    projections: Projections = "apart"
    head_sinks: bool = False
    chunk: int = 0
    temper: tuple[float, float] | None = None
    output_gate: bool = False

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim


class SelfAttention(Module):
    """What joins a token to those before it: hidden states and cache in, both out."""

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """[n, hidden] -> ([n, hidden], the cache with what this layer keeps of the tokens)."""
        raise NotImplementedError


class Attention(SelfAttention):
    """softmax(scale * q k^T) v over the sequence's cached tokens, causal unless a step has `ends`.

    `q_norm` and `k_norm`, where given, normalize queries and keys before they are rotated.
    """

    def __init__(
        self, o: AttentionOptions, q_norm: Norm | None = None, k_norm: Norm | None = None
    ) -> None:
        if o.projections == "apart":
            rows = 2 * o.width if o.output_gate else o.width
            self.q_proj = Linear(o.hidden_size, rows, o.dtype, bias=o.qkv_bias)
            self.k_proj = Linear(o.hidden_size, o.kv_width, o.dtype, bias=o.qkv_bias)
            self.v_proj = Linear(o.hidden_size, o.kv_width, o.dtype, bias=o.qkv_bias)
        else:
            both = o.width + 2 * o.kv_width
            self.qkv_proj = Linear(o.hidden_size, both, o.dtype, bias=o.qkv_bias)
        if q_norm is not None:
            self.q_norm = q_norm
        if k_norm is not None:
            self.k_norm = k_norm
        self.o_proj = Linear(o.width, o.hidden_size, o.dtype, bias=o.output_bias)
        if o.head_sinks:
            self.sinks = Parameter((o.num_heads,), o.dtype, "bias")
        self.options = o

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """[n, hidden] -> ([n, hidden], the cache with this layer's keys and values appended)."""
        o, emit = self.options, x.trace.emit
        q, k, v = (self._clipped(t) for t in self._project(x))
        q, gate = self._halves(q) if o.output_gate else (q, None)
        q, k = self._normed("q_norm", q), self._normed("k_norm", k)
        q, k = self._rotated(q, step), self._rotated(k, step)
        if o.temper is not None:
            q = emit("temper", q, step.positions, floor=o.temper[0], scale=o.temper[1])
        index = (step.positions, step.seq_ids, step.page_indptr, step.page_table)
        cache = emit("kv_append", k, v, cache, *index, head_dim=o.head_dim)
        tiles = (step.tile_start, step.tile_size, step.tile_seq)
        reach = step.positions if step.ends is None else step.ends
        attended = emit(
            "attention",
            *(q, cache, reach, step.page_indptr, step.page_table, *tiles),
            *((self.sinks.read(x.trace),) if o.head_sinks else ()),
            head_dim=o.head_dim,
            scale=o.head_dim**-0.5 if o.scale is None else o.scale,
            window=o.window,
            sinks=o.sinks,
            **({"softcap": o.softcap} if o.softcap else {}),
            **({"chunk": o.chunk} if o.chunk else {}),
            **({} if step.ends is None else {"causal": False}),
        )
        if gate is not None:
            attended = attended * emit("sigmoid", gate)
        return self.o_proj(attended), cache

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        o = self.options
        if o.projections == "apart":
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        y = self.qkv_proj(x)
        if o.projections == "joined":
            ends = (o.width, o.width + o.kv_width)
            return y.part(0, o.width), y.part(ends[0], o.kv_width), y.part(ends[1], o.kv_width)
        if o.projections == "blocks":
            size = o.width // 4
            stride, parts = 3 * size, ((0, size), (2 * size, size), (size, size))
        else:
            queries = o.width // o.num_kv_heads
            stride = queries + 2 * o.head_dim
            parts = ((0, queries), (queries, o.head_dim), (queries + o.head_dim, o.head_dim))
        q, k, v = (
            x.trace.emit("slice_groups", y, start=start, size=size, stride=stride)
            for start, size in parts
        )
        return q, k, v

    def _halves(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, and what their heads' gates are made of."""
        dim = self.options.head_dim
        first, second = (
            q.trace.emit("slice_groups", q, start=start, size=dim, stride=2 * dim)
            for start in (0, dim)
        )
        return first, second

    def _clipped(self, x: Tensor) -> Tensor:
        limit = self.options.clip
        return x.trace.emit("clip", x, limit=limit) if limit else x

    def _normed(self, name: str, x: Tensor) -> Tensor:
        norm = getattr(self, name, None)
        return x if norm is None else norm(x)

    def _rotated(self, x: Tensor, step: Step) -> Tensor:
        o = self.options
        if o.rope is None:
            return x
        pairs = {"interleaved": True} if o.interleaved else {}
        return x.trace.emit("rope", x, *step.rope(o.rope), head_dim=o.head_dim, **pairs)
