"""The decoder-only skeleton that families share: embedding, layers once, norm, head.

`trace_causal_lm` is the one place that knows the entry point's parameters and how a layer is
repeated; family files contain the forward pass of one layer and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import F32, I32, DType
from sterna.ir.expr import Var
from sterna.ir.graph import Function, IRModule
from sterna.nn.attention import Step
from sterna.nn.linear import Embedding, Linear, RMSNorm
from sterna.nn.module import Layers, Module
from sterna.nn.trace import Tensor, Trace

LAYER = "layer"


class DecoderLayer(Module):
    """One layer: hidden states and cache in, hidden states and cache out."""

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Decoder(Module):
    """Embedding, `count` layers and the final norm: what checkpoints call "model"."""

    def __init__(
        self, embed_tokens: Embedding, layer: DecoderLayer, count: int, norm: RMSNorm
    ) -> None:
        self.embed_tokens = embed_tokens
        self.layers = Layers(layer, count)
        self.norm = norm


@dataclass(frozen=True, slots=True)
class Cache:
    """Shape of the paged KV cache; see ops.attention for the layout of its state tensor."""

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: DType


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of a step's symbolic dims."""

    tokens: int
    sequences: int
    pages: int


class CausalLM(Module):
    """A decoder with an output head; `lm_head` is None when the embedding is the head."""

    def __init__(
        self,
        model: Decoder,
        lm_head: Linear | None,
        cache: Cache,
        inv_freq: NDArray[np.float32],
        rope_scaling: float,
    ) -> None:
        self.model = model
        if lm_head is not None:
            self.lm_head = lm_head
        self.cache = cache
        self.inv_freq = inv_freq
        self.rope_scaling = rope_scaling
        self.name_parameters()


def dims(limits: Limits) -> dict[str, Var]:
    """n tokens, b sequences, p page-table entries, r logit rows, t query tiles; `pages` cached."""
    n, b, p = limits.tokens, limits.sequences, limits.pages
    return {
        "n": Var("n", I32, 1, n),
        "b": Var("b", I32, 1, b),
        "p": Var("p", I32, 1, p),
        "r": Var("r", I32, 1, n),
        "t": Var("t", I32, 1, n),
        "pages": Var("pages", I32, 1, None),
    }


def trace_causal_lm(model: CausalLM, limits: Limits) -> IRModule:
    """The forward pass of one ragged step, each distinct layer traced once.

    (tokens, ..., cache) -> (logits f32 [r, vocab], cache).
    """
    d = dims(limits)
    main = Trace("forward")
    tokens = main.param("tokens", (d["n"],), I32)
    rows = main.param("logit_rows", (d["r"],), I32)
    cache = main.param("kv_cache", _cache_shape(model.cache, d["pages"]), model.cache.dtype)
    step = _step(main, model, d)
    x = model.model.embed_tokens(tokens)
    layer = _trace_layer(model, x, cache, step)
    count = model.model.layers.count
    results = tuple(r.type for r in layer.results)
    x, cache = main.bind(LAYER, results, x, cache, *step.tensors(), repeat=count)
    x = model.model.norm(x)
    head = getattr(model, "lm_head", None)
    logits = head(x) if head is not None else model.model.embed_tokens.project(x)
    forward = main.function(main.emit("take", logits, rows).cast(F32), cache)
    return IRModule(
        {forward.name: forward, LAYER: layer}, forward.name, tuple(d.values()), main.constants
    )


def _cache_shape(c: Cache, pages: Var) -> tuple[Var | int, ...]:
    return (pages, c.layers, 2, c.kv_heads, c.page_size * c.head_dim)


def _step(main: Trace, model: CausalLM, d: dict[str, Var]) -> Step:
    positions = main.param("positions", (d["n"],), I32)
    others = {
        "seq_ids": (d["n"],), "page_indptr": (d["b"] + 1,), "page_table": (d["p"],),
        "tile_start": (d["t"],), "tile_size": (d["t"],), "tile_seq": (d["t"],),
    }  # fmt: skip
    index = {name: main.param(name, shape, I32) for name, shape in others.items()}
    frequencies = main.constant("rope.inv_freq", model.inv_freq, F32)
    cosine = main.emit("rope_cos", positions, frequencies, scaling=model.rope_scaling)
    sine = main.emit("rope_sin", positions, frequencies, scaling=model.rope_scaling)
    return Step(positions, **index, cosine=cosine, sine=sine)


def _trace_layer(model: CausalLM, x: Tensor, cache: Tensor, step: Step) -> Function:
    trace = Trace(LAYER)
    inner_x = trace.param("x", x.shape, x.dtype)
    inner_cache = trace.param(cache.value.name, cache.shape, cache.dtype)
    out, new_cache = model.model.layers.layer(inner_x, inner_cache, step.inside(trace))
    return trace.function(out, new_cache)
