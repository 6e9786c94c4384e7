"""A PEFT LoRA adapter merged into the weights it was trained beside.

In: an adapter's folder and a checkpoint's weights. Out: the same weights, those with an adapter as
W + scale * B A, computed in float32 when they are read. What an adapter may hold is the business of
`checkpoint.lora`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sterna.base.dtype import F32
from sterna.base.errors import ShapeMismatch, UnexpectedTensor
from sterna.checkpoint.lora import Pair, open_adapter
from sterna.convert.stored import Parts, StoredTensor, Tensors


def merged(tensors: Tensors, folder: Path) -> dict[str, StoredTensor]:
    """The tensors with the adapter of `folder` in them.

    Raises what `open_adapter` does, UnexpectedTensor for an adapter of another model and
    ShapeMismatch for factors that do not fit.
    """
    pairs = {f"{path}.weight": pair for path, pair in open_adapter(folder).pairs.items()}
    unknown = [name for name in pairs if name not in tensors]
    if unknown:
        raise UnexpectedTensor(
            f"the adapter in {folder} changes {unknown[0][:200]}, which the model does not have; "
            "it belongs to another model"
        )
    changed = {name: _merged(tensors[name], pair) for name, pair in pairs.items()}
    return {**tensors, **changed}


def _merged(tensor: StoredTensor, pair: Pair) -> StoredTensor:
    transposed = pair.transposed and not tensor.turned
    out, inner = tensor.shape[::-1] if transposed else tensor.shape
    if pair.a.shape[1] != inner or pair.b.shape[0] != out:
        raise ShapeMismatch(
            f"the adapter's {list(pair.b.shape)} x {list(pair.a.shape)} does not fit "
            f"{tensor.name} {list(tensor.shape)}"
        )
    dtype = F32 if tensor.scheme is not None else tensor.dtype

    def read(first: int, last: int) -> Parts:
        a, b = (ref.read().astype(np.float32) for ref in (pair.a, pair.b))
        if transposed:
            delta = a.T[first:last] @ b.T
        else:
            delta = b[first:last] @ a
        values = tensor.values(first, last).astype(np.float32) + np.float32(pair.scale) * delta
        return {"weight": values.astype(dtype.numpy)}

    return replace(tensor, dtype=dtype, scheme=None, read=read)
