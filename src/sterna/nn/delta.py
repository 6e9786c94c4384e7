"""The gated delta net: a state for each head that decays, and whose keys' old values give way.

Source: Yang et al. 2024, "Gated Delta Networks" (arXiv:2412.06464), as Qwen3-Next has it: queries,
keys and values go through one causal convolution, and a head of keys may serve several of values.
"""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import F32, DType
from sterna.nn.attention import SelfAttention, Step
from sterna.nn.linear import Linear
from sterna.nn.mamba import Convolution
from sterna.nn.module import Parameter
from sterna.nn.norm import HeadNorm
from sterna.nn.trace import Tensor
from sterna.ops.recurrence import conv_elements

_LEAST = 1e-6  # of a key's squared length, where it is divided by


@dataclass(frozen=True, slots=True)
class DeltaOptions:
    """Sizes: `key_heads` of `key_dim`, each for as many of the `value_heads` of `value_dim`.

    `joined` says that a checkpoint has two matrices, in which each key head's q and k are followed
    by its value heads' v and z, and its shares by its steps; else there are four, of q, k and v,
    of z, of shares and of steps. The value heads of a key head lie side by side, or, where they
    are `tiled`, as many heads apart as there are key heads.
    """

    hidden_size: int
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    norm_eps: float
    joined: bool
    tiled: bool = False

    @property
    def key_width(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def value_width(self) -> int:
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """What is convolved: q, k and v."""
        return 2 * self.key_width + self.value_width

    @property
    def elements(self) -> int:
        """What a layer keeps of a sequence: the convolution's inputs, then the heads' states."""
        return conv_elements(self.channels, self.kernel) + self.value_width * self.key_dim


class GatedDeltaNet(SelfAttention):
    """norm(S q) * silu(z), with S [value, key] = g S (1 - share k k^T) + share v k^T at each token.

    q and k are of length 1; g, the decay, and the share are numbers of a head.
    """

    def __init__(self, o: DeltaOptions, dtype: DType) -> None:
        hidden, heads = o.hidden_size, o.value_heads
        self.conv1d = Convolution(o.channels, o.kernel, bias=False)
        if o.joined:
            self.in_proj_qkvz = Linear(hidden, o.channels + o.value_width, dtype)
            self.in_proj_ba = Linear(hidden, 2 * heads, dtype, kind="low_rank")
        else:
            self.in_proj_qkv = Linear(hidden, o.channels, dtype)
            self.in_proj_z = Linear(hidden, o.value_width, dtype)
            self.in_proj_b = Linear(hidden, heads, dtype, kind="low_rank")
            self.in_proj_a = Linear(hidden, heads, dtype, kind="low_rank")
        self.dt_bias = Parameter((heads,), F32, "exact")
        self.A_log = Parameter((heads,), F32, "exact")
        # A query's length would be 1 / sqrt(key_dim), and the norm would take that out again, but
        # for its eps.
        self.norm = HeadNorm(o.value_dim, o.norm_eps * o.key_dim, dtype)
        self.out_proj = Linear(o.value_width, hidden, dtype)
        self.lengths = HeadNorm(o.key_dim, _LEAST / o.key_dim, dtype, weight=False)
        self.options = o

    def __call__(self, x: Tensor, cache: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """[n, hidden] -> ([n, hidden], the cache with this layer's state after the tokens)."""
        o, emit = self.options, x.trace.emit
        index = step.states()
        qkv, z, share, dt = self._projected(x)
        mixed, cache = self.conv1d(qkv, cache, index)
        mixed = emit("silu", mixed)
        unit = self.lengths(mixed.part(0, 2 * o.key_width)).scaled(o.key_dim**-0.5)
        width = o.key_width if o.tiled else o.key_dim  # of what stands several times in a row
        q, k = (
            emit("repeat_heads", part, head_dim=width, times=o.value_heads // o.key_heads)
            for part in (unit.part(0, o.key_width), unit.part(o.key_width, o.key_width))
        )
        share = emit("sigmoid", share.cast(F32))
        rate = dt.cast(F32) + self.dt_bias.read(x.trace)
        decay = emit("decay", rate, self.A_log.read(x.trace))
        v = mixed.part(2 * o.key_width, o.value_width)
        out, cache = x.trace.emit_all(
            "delta_scan",
            *(q, k, v * self._each(share, o.value_dim), self._each(decay, o.key_dim)),
            *(k, k * self._each((decay * share).scaled(-1.0), o.key_dim), cache, *index),
            offset=conv_elements(o.channels, o.kernel),
            heads=o.value_heads,
        )
        return self.out_proj(self.norm(out) * emit("silu", z)), cache

    def _each(self, x: Tensor, times: int) -> Tensor:
        """A head's number for each of its dims."""
        return x.trace.emit("repeat_heads", x, head_dim=1, times=times)

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k and v of all heads, z, shares and steps before they are bent."""
        o = self.options
        if not o.joined:
            return self.in_proj_qkv(x), self.in_proj_z(x), self.in_proj_b(x), self.in_proj_a(x)
        heads = o.value_heads // o.key_heads
        q, k, v, z = _groups(self.in_proj_qkvz(x), *[o.key_dim] * 2, *[heads * o.value_dim] * 2)
        share, dt = _groups(self.in_proj_ba(x), heads, heads)
        qk = x.trace.emit("join_heads", q, k, heads=1)
        return x.trace.emit("join_heads", qk, v, heads=1), z, share, dt


def _groups(x: Tensor, *sizes: int) -> list[Tensor]:
    """The parts of all groups of so many channels, part by part."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        x.trace.emit("slice_groups", x, start=start, size=size, stride=sum(sizes))
        for start, size in zip(starts, sizes, strict=True)
    ]
