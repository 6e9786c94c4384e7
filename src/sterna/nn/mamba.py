"""Mamba-2's mixer: a causal convolution, a state that decays, and a gate.

Source: Dao and Gu 2024, "Transformers are SSMs" (arXiv:2405.21060).
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import F32, DType
from sterna.nn.attention import SelfAttention, Step
from sterna.nn.decoder import DecoderLayer
from sterna.nn.linear import Linear
from sterna.nn.module import Module, Parameter
from sterna.nn.norm import HeadNorm, Norm
from sterna.nn.trace import Tensor
from sterna.ops.recurrence import conv_elements


@dataclass(frozen=True, slots=True)
class MambaOptions:
    """Sizes: `heads` of `head_dim` channels have `state` rows each; `groups` of them share b and c.

    There are biases on the products with `bias`, on the convolution with `conv_bias`.
    """

    hidden_size: int
    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int
    norm_eps: float
    bias: bool = False
    conv_bias: bool = True

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """What is convolved: x, b and c."""
        return self.width + 2 * self.groups * self.state

    @property
    def elements(self) -> int:
        """What a layer keeps of a sequence: the convolution's inputs, then the heads' states."""
        return conv_elements(self.channels, self.kernel) + self.width * self.state


class Convolution(Module):
    """The last `kernel` inputs of each channel, weighted; f32 in every scheme."""

    def __init__(self, channels: int, kernel: int, *, bias: bool) -> None:
        self.weight = Parameter((channels, 1, kernel), F32, "exact")
        if bias:
            self.bias = Parameter((channels,), F32, "exact")

    def __call__(self, x: Tensor, cache: Tensor, index: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """[n, channels] and the cache -> both."""
        learned = (p.read(x.trace) for _, p in self.children() if isinstance(p, Parameter))
        return x.trace.emit_all("causal_conv", x, *learned, cache, *index, offset=0)


class GatedNorm(Module):
    """x * silu(gate), normalized in groups, times a weight for each channel."""

    def __init__(self, o: MambaOptions, dtype: DType) -> None:
        self.groups = HeadNorm(o.width // o.groups, o.norm_eps, dtype, weight=False)
        self.weight = Parameter((o.width,), dtype, "norm")

    def __call__(self, x: Tensor, gate: Tensor) -> Tensor:
        normed = self.groups(x * x.trace.emit("silu", gate))
        return normed * self.weight.read(x.trace).cast(x.dtype)


class MambaMixer(SelfAttention):
    """in_proj makes gate, x, b, c and the step of each head; out_proj takes what the scan gives."""

    def __init__(self, o: MambaOptions, dtype: DType) -> None:
        self.options = o
        rows = o.width + o.channels + o.heads
        self.in_proj = Linear(o.hidden_size, rows, dtype, bias=o.bias)
        self.conv1d = Convolution(o.channels, o.kernel, bias=o.conv_bias)
        self.dt_bias = Parameter((o.heads,), F32, "exact")
        self.A_log = Parameter((o.heads,), F32, "exact")
        self.D = Parameter((o.heads,), F32, "exact")
        self.gated_norm = GatedNorm(o, dtype)
        self.out_proj = Linear(o.width, o.hidden_size, dtype, bias=o.bias)

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """[n, hidden] -> ([n, hidden], the cache with this layer's state after the tokens)."""
        o, trace = self.options, x.trace
        index = step.states()
        y = self.in_proj(x)
        gate, dt = y.part(0, o.width), y.part(o.width + o.channels, o.heads).cast(F32)
        mixed, cache = self.conv1d(y.part(o.width, o.channels), cache, index)
        mixed = trace.emit("silu", mixed)
        shared = o.groups * o.state
        b, c = mixed.part(o.width, shared), mixed.part(o.width + shared, shared)
        scanned, cache = trace.emit_all(
            "ssm_scan",
            *(mixed.part(0, o.width), b, c, dt + self.dt_bias.read(trace)),
            *(self.A_log.read(trace), self.D.read(trace), cache, *index),
            offset=conv_elements(o.channels, o.kernel),
            heads=o.heads,
            state=o.state,
        )
        return self.out_proj(self.gated_norm(scanned, gate)), cache


class MambaLayer(DecoderLayer):
    """x + mixer(norm(x)): there is no feed-forward layer."""

    def __init__(self, input_layernorm: Norm, mixer: SelfAttention) -> None:
        self.input_layernorm = input_layernorm
        self.mixer = mixer

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        mixed, cache = self.mixer(self.input_layernorm(x), cache, step)
        # The last kernel of a layer writes where x lay, so what it adds to must lie elsewhere.
        return mixed + x.trace.emit("scale", x, factor=1.0), cache
