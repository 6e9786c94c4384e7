"""Norms: of whole rows, and of each head of queries and keys."""

from __future__ import annotations

from sterna.base.dtype import DType
from sterna.ir.graph import Attr
from sterna.nn.module import Module, Parameter
from sterna.nn.trace import Tensor


class Norm(Module):
    """[n, width] -> the same, normalized over the last dim."""

    op = ""

    def __init__(self, eps: float, **attrs: Attr) -> None:
        self.attrs: dict[str, Attr] = {"eps": eps, **attrs}

    def __call__(self, x: Tensor) -> Tensor:
        learned = (child for _, child in self.children() if isinstance(child, Parameter))
        return x.trace.emit(
            self.op, x, *(p.read(x.trace).cast(x.dtype) for p in learned), **self.attrs
        )


class RMSNorm(Norm):
    """x / sqrt(mean(x ** 2) + eps) * (weight + offset)."""

    op = "rms_norm"

    def __init__(self, width: int, eps: float, dtype: DType, *, offset: float = 0.0) -> None:
        super().__init__(eps, **({"offset": offset} if offset else {}))
        self.weight = Parameter((width,), dtype, "norm")


class LayerNorm(Norm):
    """(x - mean) / sqrt(variance + eps) * weight + bias; either may be left out."""

    op = "layer_norm"

    def __init__(
        self, width: int, eps: float, dtype: DType, *, weight: bool = True, bias: bool = True
    ) -> None:
        super().__init__(eps)
        if weight:
            self.weight = Parameter((width,), dtype, "norm")
        if bias:
            self.bias = Parameter((width,), dtype, "bias")


class HeadNorm(Norm):
    """RMSNorm of each head of [n, heads * head_dim], with one weight for all of them, or none."""

    op = "head_rms_norm"

    def __init__(
        self,
        head_dim: int,
        eps: float,
        dtype: DType,
        *,
        offset: float = 0.0,
        weight: bool = True,
    ) -> None:
        super().__init__(eps, head_dim=head_dim, **({"offset": offset} if offset else {}))
        if weight:
            self.weight = Parameter((head_dim,), dtype, "norm")


class GroupNorm(Norm):
    """LayerNorm of each head with a weight and a bias for each channel of [n, width].

    Source: Wu and He 2018, "Group Normalization" (arXiv:1803.08494).
    """

    op = "head_layer_norm"

    def __init__(self, width: int, head_dim: int, eps: float, dtype: DType) -> None:
        super().__init__(eps, head_dim=head_dim)
        self.weight = Parameter((width,), dtype, "norm")
        self.bias = Parameter((width,), dtype, "bias")


class HeadLayerNorm(Norm):
    """LayerNorm of each head without bias; the weight is [heads, head_dim], as Cohere has it."""

    op = "head_layer_norm"

    def __init__(self, heads: int, head_dim: int, eps: float, dtype: DType) -> None:
        super().__init__(eps, head_dim=head_dim)
        self.weight = Parameter((heads, head_dim), dtype, "norm")
