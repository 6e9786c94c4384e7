"""The weights of a source as they lie there: plain, or quantized by another program.

In: a folder. Out: StoredTensors by the names that checkpoints give weights, none of them read, and
the Recipe that keeps each as it is. Whose configuration says what is in the modules of `formats`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import BF16, F16, DType
from sterna.base.errors import ShapeMismatch
from sterna.checkpoint.tensor import TensorRef
from sterna.quantize.pack import dequantize
from sterna.quantize.recipe import Recipe
from sterna.quantize.scheme import SCHEMES, Scheme

Array = NDArray[Any]
Parts = dict[str, Array]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One weight. `scheme` is None where it is plain, of `dtype`.

    `read(first, last)` gives the parts of those rows, {"weight": ...} of a plain one; `whole`
    says that reading a few rows costs as much as reading all; `turned` that the rows are those of
    the product, though checkpoints hold columns. `nbytes` are those in the source.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    path: Path
    read: Callable[[int, int], Parts]
    scheme: Scheme | None = None
    whole: bool = False
    turned: bool = False

    def values(self, first: int, last: int) -> Array:
        """Rows `first` to `last` as floats."""
        parts = self.read(first, last)
        if self.scheme is None:
            return parts["weight"]
        return dequantize(parts, self.scheme, (last - first, *self.shape[1:]))

    @property
    def own_scheme(self) -> Scheme | None:
        """The scheme that keeps the weight as it is; None for a dtype that no folder holds."""
        return self.scheme or SCHEMES.get(f"q0{self.dtype}")


Tensors = Mapping[str, StoredTensor]


def plain(ref: TensorRef) -> StoredTensor:
    """A tensor of a safetensors file."""

    def read(first: int, last: int) -> Parts:
        return {"weight": ref.rows(first, last).read()}

    return StoredTensor(ref.name, ref.shape, ref.dtype, ref.nbytes, ref.path, read)


def packed(
    name: str, shape: tuple[int, ...], scheme: Scheme, refs: tuple[TensorRef, ...],
    read: Callable[[], Parts],
) -> StoredTensor:  # fmt: skip
    """A weight whose parts are made of whole tensors; `read` makes them all."""

    def rows(first: int, last: int) -> Parts:
        parts = read()
        if (first, last) == (0, shape[0]):
            return parts
        return {key: part if key == "q_group" else part[first:last] for key, part in parts.items()}

    nbytes = sum(ref.nbytes for ref in refs)
    path = refs[0].path
    return StoredTensor(name, shape, scheme.compute, nbytes, path, rows, scheme, whole=True)


def turned(tensor: StoredTensor) -> StoredTensor:
    """A matrix whose rows are the columns of what lies there."""

    def rows(first: int, last: int) -> Parts:
        columns = tensor.values(0, tensor.shape[0])[:, first:last]
        return {"weight": np.ascontiguousarray(columns.T)}

    return replace(tensor, shape=tensor.shape[::-1], read=rows, scheme=None, whole=True)


def as_stored(name: str, tensors: Tensors, base: Scheme) -> Recipe:
    """The recipe that keeps every weight as it is."""
    own = {title: tensor.own_scheme for title, tensor in tensors.items()}
    kept = {title: scheme for title, scheme in own.items() if scheme is not None}
    return Recipe(name, base, MappingProxyType(kept))


def plain_base(tensors: Tensors) -> Scheme:
    """The q0 scheme of the activations: f16, unless the plain weights are bf16 or wider range.

    float32 says nothing of what a model needs: llama.cpp writes norms so, of any model.
    """
    found = [tensor.dtype for tensor in tensors.values() if tensor.scheme is None]
    return SCHEMES["q0bf16" if BF16 in found and F16 not in found else "q0f16"]


def check_float(tensor: StoredTensor) -> None:
    """ShapeMismatch for a plain tensor of integers."""
    if tensor.scheme is None and not tensor.dtype.is_float:
        raise ShapeMismatch(
            f"the tensor {tensor.name} in {tensor.path} has dtype {tensor.dtype}; only f16, bf16, "
            "f32 and f64 weights can be converted"
        )
