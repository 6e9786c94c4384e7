"""Feed-forward layers."""

from __future__ import annotations

from sterna.base.dtype import DType
from sterna.nn.linear import Linear
from sterna.nn.module import Module
from sterna.nn.trace import Tensor


class GatedMLP(Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer 2020, "GLU Variants" (arXiv:2002.05202)."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, dtype: DType, *, bias: bool = False
    ) -> None:
        self.gate_proj = Linear(hidden_size, intermediate_size, dtype, bias=bias)
        self.up_proj = Linear(hidden_size, intermediate_size, dtype, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, dtype, bias=bias)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down_proj(x.trace.emit("silu", self.gate_proj(x)) * self.up_proj(x))
