"""Grouped-query attention over the paged KV cache, with rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sterna.base.dtype import DType
from sterna.nn.linear import Linear
from sterna.nn.module import Module
from sterna.nn.trace import Tensor, Trace


@dataclass(frozen=True, slots=True)
class Step:
    """What a layer may know of the batch: index tensors of `runtime.executable.StepInput`.

    The cache itself travels apart, since every append makes a new one.
    """

    positions: Tensor  # [n]
    seq_ids: Tensor  # [n]
    page_indptr: Tensor  # [b + 1]
    page_table: Tensor  # [p]
    tile_start: Tensor  # [t] first token of each query tile
    tile_size: Tensor  # [t]
    tile_seq: Tensor  # [t]
    cosine: Tensor  # [n, rotary_dim / 2]
    sine: Tensor  # [n, rotary_dim / 2]

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    def inside(self, trace: Trace) -> Step:
        """The same tensors as parameters of another Function."""
        return Step(
            *(
                trace.param(f.name, t.shape, t.dtype)
                for f, t in zip(fields(self), self.tensors(), strict=True)
            )
        )


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """Sizes and variants. `window` -1 attends to all; `sinks` tokens are always attended to."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    qkv_bias: bool = False
    output_bias: bool = False
    window: int = -1
    sinks: int = 0


class Attention(Module):
    """softmax(q k^T / sqrt(head_dim)) v over the sequence's cached tokens, causal."""

    def __init__(self, o: AttentionOptions) -> None:
        width, kv_width = o.num_heads * o.head_dim, o.num_kv_heads * o.head_dim
        self.q_proj = Linear(o.hidden_size, width, o.dtype, bias=o.qkv_bias)
        self.k_proj = Linear(o.hidden_size, kv_width, o.dtype, bias=o.qkv_bias)
        self.v_proj = Linear(o.hidden_size, kv_width, o.dtype, bias=o.qkv_bias)
        self.o_proj = Linear(width, o.hidden_size, o.dtype, bias=o.output_bias)
        self.options = o

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """[n, hidden] -> ([n, hidden], the cache with this layer's keys and values appended)."""
        o, emit = self.options, x.trace.emit
        q = emit("rope", self.q_proj(x), step.cosine, step.sine, head_dim=o.head_dim)
        k = emit("rope", self.k_proj(x), step.cosine, step.sine, head_dim=o.head_dim)
        index = (step.positions, step.seq_ids, step.page_indptr, step.page_table)
        cache = emit("kv_append", k, self.v_proj(x), cache, *index, head_dim=o.head_dim)
        tiles = (step.tile_start, step.tile_size, step.tile_seq)
        attended = emit(
            "attention",
            *(q, cache, step.positions, step.page_indptr, step.page_table, *tiles),
            head_dim=o.head_dim,
            scale=o.head_dim**-0.5,
            window=o.window,
            sinks=o.sinks,
        )
        return self.o_proj(attended), cache
