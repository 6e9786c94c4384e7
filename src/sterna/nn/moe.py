"""Mixtures of experts: a router, experts that tokens choose, and one that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sterna.base.dtype import F32, DType
from sterna.nn.linear import Linear, Readable
from sterna.nn.mlp import FeedForward, GatedMLP
from sterna.nn.module import Module, Parameter
from sterna.nn.trace import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertOptions:
    """How many experts there are, how tokens choose among them and what an expert computes.

    A share is softmax over all experts, or sigmoid of one's own logit, times `scaling`;
    `over_chosen` says that a token's shares sum to 1 over the experts it goes to. A `corrected`
    choice adds a learned bias to the sigmoids, which shares do not see. Where there are `groups`,
    a token chooses in the `best` of them, told by the sum of their `leaders` largest. `weigh`
    says whether shares multiply what experts give or what they are given.

    `shared_size` is that of an expert for all tokens, `gated` if its answer has a share too.
    `clamp` (limit, alpha) makes gpt-oss's swiglu of the activation.
    """

    experts: int
    chosen: int
    intermediate_size: int
    over_chosen: bool
    score: Literal["softmax", "sigmoid"] = "softmax"
    scaling: float = 1.0
    corrected: bool = False
    groups: int = 1
    best: int = 1
    leaders: int = 1
    weigh: Literal["answers", "questions"] = "answers"
    shared_size: int = 0
    gated: bool = False
    bias: bool = False
    clamp: tuple[float, float] | None = None


class ExpertLinear(Module):
    """One matrix for each expert, held as one: those of expert e are its rows from e * out on."""

    def __init__(
        self, experts: int, in_features: int, out_features: int, dtype: DType, *, bias: bool = False
    ) -> None:
        rows = experts * out_features
        self.weight: Readable = Parameter((rows, in_features), dtype, "experts", stack=experts)
        if bias:
            self.bias = Parameter((rows,), dtype, "bias", stack=experts)
        self.experts = experts

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """[n, in] or [n, slots * in], and [n, slots] experts -> [n, slots * out]."""
        weight, bias = self.weight.read(x.trace), getattr(self, "bias", None)
        added = () if bias is None else (bias.read(x.trace),)
        return x.trace.emit("expert_matmul", x, index, weight, *added, experts=self.experts)


class Router(Linear):
    """Logits of the experts; a `corrected` one has a bias for the choice, always in float32."""

    def __init__(self, hidden_size: int, o: ExpertOptions, dtype: DType) -> None:
        super().__init__(hidden_size, o.experts, dtype, bias=o.bias, kind="router")
        if o.corrected:
            self.e_score_correction_bias = Parameter((o.experts,), F32, "exact")
        self.options = o

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, hidden] -> the experts i32 [n, chosen] of each token, and its shares f32 of them."""
        o, emit, logits = self.options, x.trace.emit, self(x)
        bias = getattr(self, "e_score_correction_bias", None)
        liked = (logits,) if bias is None else (logits, bias.read(x.trace))
        groups = {"groups": o.groups, "best": o.best, "leaders": o.leaders}
        index = emit("route_index", *liked, chosen=o.chosen, **groups)
        kind = {"score": o.score, "over_chosen": o.over_chosen, "scaling": o.scaling}
        return index, emit("route_share", logits, index, **kind)


class MixtureOfExperts(FeedForward):
    """sum over the chosen experts of share * down(act(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, o: ExpertOptions, dtype: DType, *, act: str) -> None:
        def matrices(inside: int, outside: int) -> ExpertLinear:
            return ExpertLinear(o.experts, inside, outside, dtype, bias=o.bias)

        self.gate = Router(hidden_size, o, dtype)
        self.gate_experts = matrices(hidden_size, o.intermediate_size)
        self.up_experts = matrices(hidden_size, o.intermediate_size)
        self.down_experts = matrices(o.intermediate_size, hidden_size)
        if o.shared_size:
            self.shared_expert = GatedMLP(hidden_size, o.shared_size, dtype, act=act)
        if o.gated:
            self.shared_expert_gate = Linear(hidden_size, 1, dtype, kind="router")
        self.options, self.act = o, act

    def __call__(self, x: Tensor) -> Tensor:
        o, emit = self.options, x.trace.emit
        index, share = self.gate.choose(x)
        asked = emit("spread_experts", x, share) if o.weigh == "questions" else x
        gate, up = self.gate_experts(asked, index), self.up_experts(asked, index)
        down = self.down_experts(self._activated(gate, up), index)
        shares = (share,) if o.weigh == "answers" else ()
        combined = emit("combine_experts", down, *shares, slots=o.chosen)
        if not o.shared_size:
            return combined
        shared = self.shared_expert(x)
        if o.gated:
            shared = shared * emit("sigmoid", self.shared_expert_gate(x))
        return combined + shared

    def _activated(self, gate: Tensor, up: Tensor) -> Tensor:
        emit, clamp = gate.trace.emit, self.options.clamp
        if clamp is None:
            return emit(self.act, gate) * up
        return emit("clamped_swiglu", gate, up, limit=clamp[0], alpha=clamp[1])


class ExpertsBeside(FeedForward):
    """Experts and a feed-forward layer of all tokens, which checkpoints hold side by side."""

    transparent = True

    def __init__(self, sparse_mlp: MixtureOfExperts, mlp: FeedForward) -> None:
        self.sparse_mlp = sparse_mlp
        self.mlp = mlp

    def __call__(self, x: Tensor) -> Tensor:
        return self.sparse_mlp(x) + self.mlp(x)
