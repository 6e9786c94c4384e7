"""RWKV-7's layers: mixing over time by a state that follows the generalized delta rule.

Source: Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution"
(arXiv:2503.14456). What a token's products see is a mixture of it and of the token before, so a
layer keeps of a sequence the last token's input to either half, and the state of each head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp

from sterna.base.dtype import F32, DType
from sterna.ir.expr import const_value
from sterna.nn.attention import Step
from sterna.nn.decoder import Decoder, DecoderLayer
from sterna.nn.linear import Embedding, Linear
from sterna.nn.module import Layers, Module, Parameter
from sterna.nn.norm import GroupNorm, HeadNorm, LayerNorm
from sterna.nn.trace import Tensor

_LEAST = 1e-24  # of a key's squared length, where it is divided by
_SLOWEST = -exp(-0.5)  # the log of the fastest decay: a state keeps more than half of itself


@dataclass(frozen=True, slots=True)
class RwkvOptions:
    """Sizes: `heads` of `head_dim` keys and as many values, `inner` channels of the channel mix.

    The other numbers are ranks of what makes decay, gate, in-context rate and value mixture.
    """

    hidden_size: int
    heads: int
    head_dim: int
    inner: int
    decay_rank: int
    gate_rank: int
    rate_rank: int
    value_rank: int
    norm_eps: float

    @property
    def state(self) -> int:
        """Elements of all heads' states."""
        return self.hidden_size * self.head_dim

    @property
    def elements(self) -> int:
        """What a layer keeps: the time mix's last input, the states, the channel mix's input."""
        return 2 * self.hidden_size + self.state


class LowRank(Module):
    """up(act(down(x))). Gates hang on these weights, which are small, so no scheme packs them."""

    def __init__(
        self, o: RwkvOptions, rank: int, dtype: DType, act: str = "", *, bias: bool = True
    ) -> None:
        self.down = Linear(o.hidden_size, rank, dtype, kind="low_rank")
        self.up = Linear(rank, o.hidden_size, dtype, bias=bias, kind="low_rank")
        self.act = act

    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        yield "lora.0", self.down
        yield "lora.2", self.up

    def __call__(self, x: Tensor) -> Tensor:
        y = self.down(x)
        return self.up(x.trace.emit(self.act, y) if self.act else y)


class Mixing(Module):
    """A half of a layer, which shifts its input by a token."""

    offset = 0  # where what it keeps begins in a layer's elements

    def shifted(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """(the token before minus x, the cache)."""
        before, cache = x.trace.emit_all(
            "token_shift", x, cache, *step.states(), offset=self.offset
        )
        return before + x.scaled(-1.0), cache


class TimeMix(Mixing):
    """The state of each head: it decays, and what it has for a key gives way to a value."""

    def __init__(self, o: RwkvOptions, dtype: DType, *, first: bool) -> None:
        for letter in "rwkvag":
            setattr(self, f"x_{letter}", Parameter((1, 1, o.hidden_size), F32, "exact"))
        self.k_k = Parameter((o.hidden_size,), F32, "exact")
        self.k_a = Parameter((o.hidden_size,), F32, "exact")
        self.r_k = Parameter((o.heads, o.head_dim), F32, "exact")
        self.r_proj, self.k_proj, self.v_proj, self.o_proj = (
            Linear(o.hidden_size, o.hidden_size, dtype) for _ in "rkvo"
        )
        self.w_lora = LowRank(o, o.decay_rank, dtype, "tanh")
        if not first:
            self.v_lora = LowRank(o, o.value_rank, dtype)
        self.a_lora = LowRank(o, o.rate_rank, dtype)
        self.g_lora = LowRank(o, o.gate_rank, dtype, "sigmoid", bias=False)
        self.g_norm = GroupNorm(o.hidden_size, o.head_dim, o.head_dim * o.norm_eps, dtype)
        self.lengths = HeadNorm(o.head_dim, _LEAST / o.head_dim, dtype, weight=False)
        self.options, self.first = o, first

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """[n, hidden] -> (the same, the cache, the values of the first layer)."""
        o, emit = self.options, x.trace.emit
        delta, cache = self.shifted(x, cache, step)

        def mixed(letter: str, through: str) -> Tensor:
            share = emit("flatten", getattr(self, f"x_{letter}").read(x.trace))
            y: Tensor = getattr(self, through)(x + delta * share)
            return y

        r, k, v = (mixed(letter, f"{letter}_proj") for letter in "rkv")
        w = emit("exp", emit("sigmoid", mixed("w", "w_lora")).scaled(_SLOWEST))
        rate, gate = emit("sigmoid", mixed("a", "a_lora")), mixed("g", "g_lora")
        if not self.first:
            assert step.carried is not None, "the first layer gives its values"
            v = v + (step.carried + v.scaled(-1.0)) * emit("sigmoid", mixed("v", "v_lora"))
        key = self.lengths(k * self.k_k.read(x.trace)).scaled(o.head_dim**-0.5)
        k = k + k * emit("shift", rate, by=-1.0) * self.k_a.read(x.trace)
        w, k = beside(w, k)
        read, write = beside(key.scaled(-1.0), key * rate)
        out, cache = x.trace.emit_all(
            "delta_scan",
            *(r, k, v, w, read, write, cache, *step.states()),
            offset=o.hidden_size,
            heads=o.heads,
        )
        seen = emit("head_dot", r, k, self.r_k.read(x.trace))
        own = emit("repeat_heads", seen, head_dim=1, times=o.head_dim) * v
        return self.o_proj((self.g_norm(out) + own) * gate), cache, v


class ChannelMix(Mixing):
    """value(relu(key(x))^2) of the input mixed with that of the token before."""

    def __init__(self, o: RwkvOptions, dtype: DType) -> None:
        self.x_k = Parameter((o.hidden_size,), F32, "exact")
        self.key = Linear(o.hidden_size, o.inner, dtype)
        self.value = Linear(o.inner, o.hidden_size, dtype)
        self.offset = o.hidden_size + o.state

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        delta, cache = self.shifted(x, cache, step)
        y = self.key(x + delta * self.x_k.read(x.trace))
        return self.value(x.trace.emit("relu_squared", y)), cache


class RwkvLayer(DecoderLayer):
    """x + time mix, then x + channel mix; the first layer's values are carried to all others."""

    def __init__(
        self, norm: Callable[[], LayerNorm], o: RwkvOptions, dtype: DType, *, first: bool
    ) -> None:
        self.attn_norm = norm()
        self.attn = TimeMix(o, dtype, first=first)
        self.ffn_norm = norm()
        self.ffn = ChannelMix(o, dtype)

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, ...]:
        mixed, cache, values = self.attn(self.attn_norm(x), cache, step)
        x = x + mixed
        mixed, cache = self.ffn(self.ffn_norm(x), cache, step)
        return (x + mixed, cache, values) if self.attn.first else (x + mixed, cache)


class RwkvDecoder(Decoder):
    """Embeddings are normalized before the first layer."""

    def __init__(
        self,
        embed_tokens: Embedding,
        pre_norm: LayerNorm,
        layers: Layers[DecoderLayer],
        norm: LayerNorm,
    ) -> None:
        super().__init__(embed_tokens, layers, norm)
        self.pre_norm = pre_norm

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The embeddings' memory is that of the first layer's values."""
        return self.pre_norm(x), x


def beside(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as parts of one tensor [n, ...]: devices bind few, and a scan reads many."""
    size, other = (int(const_value(t.shape[1]) or 0) for t in (x, y))
    both = x.trace.emit("join_heads", x, y, heads=1)
    return both.part(0, size), both.part(size, other)
