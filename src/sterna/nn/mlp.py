"""Feed-forward layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sterna.base.dtype import DType
from sterna.nn.linear import Linear
from sterna.nn.module import Module
from sterna.nn.trace import Tensor

# Hugging Face's names of activations, and the operators they mean.
ACTIVATIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "quick_gelu": "gelu_quick",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
        "sqrelu": "relu_squared",
    }
)


class FeedForward(Module):
    """[n, hidden] -> [n, hidden], each row on its own."""

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class GatedMLP(FeedForward):
    """down(act(gate(x)) * up(x)). Source: Shazeer 2020, "GLU Variants" (arXiv:2002.05202).

    `joined` says that a checkpoint holds gate and up as one matrix, gate first.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        dtype: DType,
        *,
        act: str = "silu",
        bias: bool = False,
        joined: bool = False,
    ) -> None:
        if joined:
            self.gate_up_proj = Linear(hidden_size, 2 * intermediate_size, dtype, bias=bias)
        else:
            self.gate_proj = Linear(hidden_size, intermediate_size, dtype, bias=bias)
            self.up_proj = Linear(hidden_size, intermediate_size, dtype, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, dtype, bias=bias)
        self.intermediate_size = intermediate_size
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        size, both = self.intermediate_size, getattr(self, "gate_up_proj", None)
        if both is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            y = both(x)
            gate, up = y.part(0, size), y.part(size, size)
        return self.down_proj(x.trace.emit(self.act, gate) * up)


class MLP(FeedForward):
    """down(act(up(x)))."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        dtype: DType,
        *,
        act: str,
        bias: bool = True,
    ) -> None:
        self.up_proj = Linear(hidden_size, intermediate_size, dtype, bias=bias)
        self.down_proj = Linear(intermediate_size, hidden_size, dtype, bias=bias)
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        return self.down_proj(x.trace.emit(self.act, self.up_proj(x)))
