"""Linear layers and embeddings. A weight may be packed; the layers do not know how."""

from __future__ import annotations

from typing import Protocol

from sterna.base.dtype import F32, DType
from sterna.nn.module import Module, Parameter
from sterna.nn.trace import Tensor, Trace


class Readable(Protocol):
    """A weight that a trace can read as a matrix: a Parameter, or packed codes with scales."""

    def read(self, trace: Trace) -> Tensor: ...


class Linear(Module):
    """y = x @ weight.T + bias, with weight [out_features, in_features]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dtype: DType,
        *,
        bias: bool = False,
        kind: str = "linear",
    ) -> None:
        self.weight: Readable = Parameter((out_features, in_features), dtype, kind)
        if bias:
            self.bias = Parameter((out_features,), dtype, "bias")

    def __call__(self, x: Tensor) -> Tensor:
        y = x.trace.emit("matmul", x, self.weight.read(x.trace))
        bias = getattr(self, "bias", None)
        return y if bias is None else y + bias.read(x.trace).cast(y.dtype)


class Embedding(Module):
    """Row `ids[n]` of weight [num_embeddings, width], as f32; also a tied output head."""

    def __init__(self, num_embeddings: int, width: int, dtype: DType) -> None:
        self.weight: Readable = Parameter((num_embeddings, width), dtype, "embedding")

    def __call__(self, ids: Tensor) -> Tensor:
        return ids.trace.emit("take", self.weight.read(ids.trace), ids).cast(F32)

    def project(self, x: Tensor) -> Tensor:
        """Logits of a model whose head is the embedding."""
        return x.trace.emit("matmul", x, self.weight.read(x.trace))
