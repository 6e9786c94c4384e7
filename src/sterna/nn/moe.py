"""Mixtures of experts: a router, experts that tokens choose, and one that all of them share."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.base.dtype import DType
from sterna.nn.linear import Linear, Readable
from sterna.nn.mlp import FeedForward, GatedMLP
from sterna.nn.module import Module, Parameter
from sterna.nn.trace import Tensor


@dataclass(frozen=True, slots=True)
class ExpertOptions:
    """`over_chosen` says that a token's shares sum to 1 over the experts it goes to."""

    experts: int
    chosen: int
    intermediate_size: int
    over_chosen: bool
    shared_size: int = 0


class ExpertLinear(Module):
    """One matrix for each expert, held as one: those of expert e are its rows from e * out on."""

    def __init__(self, experts: int, in_features: int, out_features: int, dtype: DType) -> None:
        shape = (experts * out_features, in_features)
        self.weight: Readable = Parameter(shape, dtype, "experts", stack=experts)
        self.experts = experts

    def __call__(self, x: Tensor, index: Tensor) -> Tensor:
        """[n, in] or [n, slots * in], and [n, slots] experts -> [n, slots * out]."""
        weight = self.weight.read(x.trace)
        return x.trace.emit("expert_matmul", x, index, weight, experts=self.experts)


class MixtureOfExperts(FeedForward):
    """sum over the chosen experts of share * down(act(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, o: ExpertOptions, dtype: DType, *, act: str) -> None:
        self.gate = Linear(hidden_size, o.experts, dtype, kind="router")
        self.gate_experts = ExpertLinear(o.experts, hidden_size, o.intermediate_size, dtype)
        self.up_experts = ExpertLinear(o.experts, hidden_size, o.intermediate_size, dtype)
        self.down_experts = ExpertLinear(o.experts, o.intermediate_size, hidden_size, dtype)
        if o.shared_size:
            self.shared_expert = GatedMLP(hidden_size, o.shared_size, dtype, act=act)
            self.shared_expert_gate = Linear(hidden_size, 1, dtype, kind="router")
        self.options, self.act = o, act

    def __call__(self, x: Tensor) -> Tensor:
        o, emit = self.options, x.trace.emit
        logits = self.gate(x)
        index = emit("route_index", logits, chosen=o.chosen)
        share = emit("route_share", logits, chosen=o.chosen, over_chosen=o.over_chosen, scaling=1.0)
        gate, up = self.gate_experts(x, index), self.up_experts(x, index)
        down = self.down_experts(emit(self.act, gate) * up, index)
        combined = emit("combine_experts", down, share)
        if not o.shared_size:
            return combined
        return combined + self.shared_expert(x) * emit("sigmoid", self.shared_expert_gate(x))
