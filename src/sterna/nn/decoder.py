"""The decoder-only skeleton that families share: embedding, kinds of layers, norm, head.

`trace_causal_lm` is the one place that knows the entry point's parameters and how layers are
repeated; family files contain the forward pass of their layers and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from sterna.base.artifact import GIVEN, IS_GIVEN, ROPE_POSITIONS, SLOT_INDPTR, SLOTS, STATES
from sterna.base.artifact import States as ManifestStates
from sterna.base.dtype import F32, I32, DType
from sterna.ir.expr import Var
from sterna.ir.graph import Attr, Function, IRModule
from sterna.nn.attention import Step
from sterna.nn.linear import Embedding, Linear
from sterna.nn.module import Layers, Module, Parameter, Run, runs
from sterna.nn.norm import Norm
from sterna.nn.trace import Tensor, Trace
from sterna.ops.attention import slot_elements

LAYER = "layer"
NO_NAMES: Mapping[str, str] = MappingProxyType({})


class DecoderLayer(Module):
    """One layer: hidden states and cache in, hidden states and cache out.

    A third result is what layers behind it find as `Step.carried`.
    """

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, ...]:
        raise NotImplementedError


class Decoder(Module):
    """Embedding, layers and the final norm: what checkpoints call "model".

    A token's embedding is multiplied by `embedding_scale`; learned `position_embeddings` are
    added to it, that of position 0 being row `first_position`.
    """

    def __init__(
        self,
        embed_tokens: Embedding,
        layers: Layers[DecoderLayer],
        norm: Norm,
        *,
        position_embeddings: Embedding | None = None,
        embedding_scale: float = 1.0,
        first_position: int = 0,
    ) -> None:
        self.embed_tokens = embed_tokens
        if position_embeddings is not None:
            self.position_embeddings = position_embeddings
        self.layers = layers
        self.norm = norm
        self.embedding_scale = embedding_scale
        self.first_position = first_position

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """[n] ids and [n] positions -> [n, hidden] in f32."""
        x = self.embed_tokens(tokens).scaled(self.embedding_scale)
        table: Embedding | None = getattr(self, "position_embeddings", None)
        if table is None:
            return x
        first = self.first_position
        return x + table(positions.trace.emit("shift", positions, by=first) if first else positions)

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the first layer takes of embeddings, and what is carried, if anything is.

        A layer gives the latter its first meaning; here it is memory of the right shape.
        """
        return x, None

    def finish(self, x: Tensor) -> Tensor:
        """What follows the last layer, [n, hidden] -> [n, hidden]."""
        return self.norm(x)


@dataclass(frozen=True, slots=True)
class States:
    """What recurrent layers keep of a sequence where others have a KV cache: f32 in each layer."""

    layers: int
    elements: int

    def told(self, slots: int) -> ManifestStates:
        """The record for a program of so many sequences at once."""
        return ManifestStates(slots=slots, layers=self.layers, elements=self.elements)


@dataclass(frozen=True, slots=True)
class Cache:
    """Shape of the paged KV cache; see ops.attention for the layout of its state tensor.

    That of a `recurrent` model has one page a sequence, as long as the context: the states of all
    layers, `head_dim` elements each, as ops.recurrence has them. Where only some layers are
    recurrent, `layers` counts the others, and `states` are what those keep.
    """

    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: DType
    planes: int = 2  # keys and values; 1 where values are the first elements of keys
    recurrent: bool = False
    states: States | None = None

    def kept_in(self, dtype: DType, context: int) -> Cache:
        """The cache of a program for sequences of so many tokens."""
        return replace(self, dtype=dtype, page_size=context if self.recurrent else self.page_size)

    @property
    def page_elements(self) -> int:
        """Elements of a page that one head of a layer has in one plane."""
        if self.recurrent:
            return self.head_dim
        return self.page_size * slot_elements(self.dtype, self.head_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers."""
        heads = self.planes * self.layers * self.kv_heads
        return heads * self.page_elements * self.dtype.bytes


@dataclass(frozen=True, slots=True)
class Rope:
    """One table of rotary angles: a frequency a pair of dims, and the factor on cos and sin.

    With `sections` a token has a position on as many axes, and each turns so many pairs.
    """

    inv_freq: NDArray[np.float32]
    scaling: float
    sections: tuple[int, ...] = ()

    def angles(self, positions: Tensor, title: str) -> tuple[Tensor, Tensor]:
        """Cosine and sine [n, pairs] of positions [n], or [n, axes]."""
        frequencies = positions.trace.constant(title, self.inv_freq, F32)
        own = {"sections": " ".join(map(str, self.sections))} if self.sections else {}
        cosine, sine = (
            positions.trace.emit(op, positions, frequencies, scaling=self.scaling, **own)
            for op in ("rope_cos", "rope_sin")
        )
        return cosine, sine


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of a step's symbolic dims."""

    tokens: int
    sequences: int
    pages: int


class CausalLM(Module):
    """A decoder with an output head; `lm_head` is None when the embedding is the head.

    `ropes` are the tables that layers choose from. Logits are multiplied by `logit_scale`, then
    bent by cap * tanh(logits / cap) where `logit_softcap` is not 0. `names` says what checkpoints
    call a component of a path where that is not its attribute's name here; `sight` is what makes
    rows of images (nn.vision).
    """

    def __init__(
        self,
        model: Decoder,
        lm_head: Linear | None,
        cache: Cache,
        ropes: tuple[Rope, ...] = (),
        *,
        logit_scale: float = 1.0,
        logit_softcap: float = 0.0,
        names: Mapping[str, str] = NO_NAMES,
        sight: Module | None = None,
    ) -> None:
        self.model = model
        if lm_head is not None:
            self.lm_head = lm_head
        if sight is not None:
            self.sight = sight
        self.cache = cache
        self.ropes = ropes
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap
        self.names = names
        self.name_parameters()

    def parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for path, parameter in super().parameters(prefix):
            yield self.renamed(path), parameter

    def name_parameters(self, prefix: str = "") -> None:
        for path, parameter in self.named(prefix):
            parameter.path = self.renamed(path)

    def renamed(self, path: str) -> str:
        """A path as checkpoints spell it."""
        return ".".join(self.names.get(part, part) for part in path.split("."))

    @property
    def causal(self) -> bool:
        """Whether a token sees those before it only."""
        return True

    def result(self, x: Tensor) -> Tensor:
        """What a step gives of finished hidden states: logits, [n, hidden] -> [n, vocab]."""
        head = getattr(self, "lm_head", None)
        x = head(x) if head is not None else self.model.embed_tokens.project(x)
        return x.scaled(self.logit_scale).softcapped(self.logit_softcap)


class EmbeddingModel(CausalLM):
    """A model without a head: a step gives the hidden states, which are pooled into vectors.

    It may be `causal`, or an encoder, where every token sees its whole sequence.
    """

    def __init__(
        self,
        model: Decoder,
        cache: Cache,
        ropes: tuple[Rope, ...] = (),
        *,
        causal: bool = True,
        names: Mapping[str, str] = NO_NAMES,
    ) -> None:
        self._causal = causal
        super().__init__(model, None, cache, ropes, names=names)

    @property
    def causal(self) -> bool:
        return self._causal

    def result(self, x: Tensor) -> Tensor:
        return x


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


def trace_causal_lm(model: CausalLM, limits: Limits, *, given: bool = False) -> IRModule:
    """The forward pass of one ragged step, each kind of layer traced once.

    (tokens, ..., cache) -> (f32 [r, vocab], or [r, hidden] of an EmbeddingModel, cache).
    `given` rows f32 [n, hidden] take the place of embeddings where `is_given` i32 [n] is not 0.
    """
    d = dims(limits)
    main = Trace("forward")
    tokens = main.param("tokens", (d["n"],), I32)
    rows = main.param("logit_rows", (d["r"],), I32)
    cache = main.param("kv_cache", _cache_shape(model.cache, d["pages"]), model.cache.dtype)
    step = _step(main, model, d)
    x = model.model.embed(tokens, step.positions)
    if given:
        shown = main.param(GIVEN, x.shape, F32)
        x = main.emit("replace_rows", x, shown, main.param(IS_GIVEN, (d["n"],), I32))
    x, carried = model.model.begin(x)
    if (kept := model.cache.states) is not None:
        shape = (limits.sequences, kept.layers, 1, 1, kept.elements)
        carried = main.param(STATES, shape, F32)
    step = replace(step, carried=carried)
    x, cache, functions = trace_layers(main, model.model.layers, x, cache, step)
    x = model.result(model.model.finish(x))
    forward = main.function(main.emit("take", x, rows).cast(F32), cache)
    functions = {forward.name: forward, **functions}
    return IRModule(functions, forward.name, tuple(d.values()), main.constants)


def trace_layers(
    main: Trace, layers: Layers[DecoderLayer], x: Tensor, cache: Tensor, step: Step
) -> tuple[Tensor, Tensor, dict[str, Function]]:
    """States and cache behind all layers, and the Functions that `main` now calls."""
    kinds = [_trace_kind(layers, kind, x, cache, step) for kind in range(len(layers.kinds))]
    functions = {kind.name: kind for kind in kinds}
    for run in runs(layers.order):
        body = _trace_body(run, kinds, x, cache, step)
        functions[body.name] = body
        x, cache, step = _call(main, body, x, cache, step, **_repeat(run))
    return x, cache, functions


def _cache_shape(c: Cache, pages: Var) -> tuple[Var | int, ...]:
    return (pages, c.layers, c.planes, c.kv_heads, c.page_elements)


def _step(main: Trace, model: CausalLM, d: dict[str, Var]) -> Step:
    positions = main.param("positions", (d["n"],), I32)
    others = {
        "seq_ids": (d["n"],), "page_indptr": (d["b"] + 1,), "page_table": (d["p"],),
        "tile_start": (d["t"],), "tile_size": (d["t"],), "tile_seq": (d["t"],),
    }  # fmt: skip
    if model.cache.recurrent or model.cache.states is not None:
        others["seq_indptr"] = (d["b"] + 1,)
    if model.cache.states is not None:
        others |= {SLOT_INDPTR: (d["b"] + 1,), SLOTS: (d["b"],)}
    if not model.causal:
        others["ends"] = (d["n"],)
    index = {name: main.param(name, shape, I32) for name, shape in others.items()}
    axes = {len(rope.sections) for rope in model.ropes if rope.sections}
    on_axes = main.param(ROPE_POSITIONS, (d["n"], max(axes)), I32) if axes else positions
    angles: list[Tensor] = []
    for i, rope in enumerate(model.ropes):
        title = "rope.inv_freq" if i == 0 else f"rope.inv_freq.{i}"
        angles += rope.angles(on_axes if rope.sections else positions, title)
    return Step(positions, **index, angles=tuple(angles))


def _trace_kind(
    layers: Layers[DecoderLayer], kind: int, x: Tensor, cache: Tensor, step: Step
) -> Function:
    trace = Trace(LAYER if len(layers.kinds) == 1 else f"{LAYER}_{kind}")
    inner_x, inner_cache, inner_step = _inside(trace, x, cache, step)
    return trace.function(*layers.kinds[kind](inner_x, inner_cache, inner_step))


def _trace_body(run: Run, kinds: list[Function], x: Tensor, cache: Tensor, step: Step) -> Function:
    """What a run repeats: the kind itself, or a Function that calls kinds one after another."""
    if len(run.body) == 1:
        return kinds[run.body[0]]
    trace = Trace(f"layers_{run.first}")
    inner_x, inner_cache, inner_step = _inside(trace, x, cache, step)
    carried = inner_step.carried
    for offset, kind in enumerate(run.body):
        function = kinds[kind]
        inner_x, inner_cache, inner_step = _call(
            trace, function, inner_x, inner_cache, inner_step, offset=offset
        )
    last = inner_step.carried
    return trace.function(inner_x, inner_cache, *(() if last is carried or not last else (last,)))


def _inside(trace: Trace, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor, Step]:
    inner_x = trace.param("x", x.shape, x.dtype)
    inner_cache = trace.param("kv_cache", cache.shape, cache.dtype)
    return inner_x, inner_cache, step.inside(trace)


def _call(
    trace: Trace, function: Function, x: Tensor, cache: Tensor, step: Step, **attrs: Attr
) -> tuple[Tensor, Tensor, Step]:
    results = tuple(r.type for r in function.results)
    x, new, *more = trace.bind(function.name, results, x, cache, *step.tensors(), **attrs)
    kept = function.results[1] is function.params[1]  # by a layer that has no cache
    return x, cache if kept else new, replace(step, carried=more[0]) if more else step


def _repeat(run: Run) -> dict[str, Attr]:
    """Layer `first + stride * i + offset` at each i of the repeat; what is usual is left out."""
    attrs: dict[str, Attr] = {"repeat": run.count}
    if run.first:
        attrs["first"] = run.first
    if len(run.body) > 1:
        attrs["stride"] = len(run.body)
    return attrs
