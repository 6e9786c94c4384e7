"""GGUF: blocks of the file become parts of schemes, bit for bit.

In: an opened file. Out: its StoredTensors under the checkpoint's names. Rows that llama.cpp's
converter moved are moved back; a norm that it raised by 1 is lowered again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.dtype import BF16, F16, F32, F64, DType
from sterna.base.errors import ShapeMismatch
from sterna.checkpoint.gguf import GgufFile, GgufTensor
from sterna.convert.gguf_model import Mapped, checkpoint_tensors
from sterna.convert.stored import Parts, StoredTensor
from sterna.quantize.ggml_blocks import GGML_SCHEMES, split_blocks

_PLAIN: dict[str, DType] = {"F32": F32, "F16": F16, "BF16": BF16, "F64": F64}


def stored_tensors(file: GgufFile) -> dict[str, StoredTensor]:
    """Every weight of the file; raises what `checkpoint_tensors` does, ShapeMismatch."""
    return {name: _stored(mapped) for name, mapped in checkpoint_tensors(file).items()}


def _stored(mapped: Mapped) -> StoredTensor:
    tensor = mapped.tensor
    scheme = GGML_SCHEMES.get(tensor.type.name)
    dtype = _PLAIN[tensor.type.name] if scheme is None else scheme.compute
    order = _order(mapped)

    def read(first: int, last: int) -> Parts:
        if order is None:
            return _parts(tensor, first, last, mapped)
        whole = _parts(tensor, 0, tensor.shape[0], mapped)
        return {key: part[order[first:last]] for key, part in whole.items()}

    return StoredTensor(
        mapped.name, tensor.shape, dtype, tensor.rows.nbytes, tensor.rows.path, read, scheme,
        whole=order is not None,
    )  # fmt: skip


def _parts(tensor: GgufTensor, first: int, last: int, mapped: Mapped) -> Parts:
    kind = tensor.type.name
    if len(tensor.shape) == 1:
        values = tensor.rows.read().view(_PLAIN[kind].numpy).reshape(-1)[first:last]
        return {"weight": values - values.dtype.type(1) if mapped.minus_one else values}
    inner = int(np.prod(tensor.shape[1:-1], dtype=np.int64))
    raw = tensor.rows.rows(first * inner, last * inner).read()
    lead = (last - first, *tensor.shape[1:-1])
    if kind in _PLAIN:
        return {"weight": raw.view(_PLAIN[kind].numpy).reshape(*lead, tensor.shape[-1])}
    parts = split_blocks(raw, kind, name=f"{tensor.name} in {tensor.rows.path}")
    return {key: part.reshape(*lead, part.shape[-1]) for key, part in parts.items()}


def _order(mapped: Mapped) -> NDArray[Any] | None:
    """Where each row of the checkpoint lies in the file; None where rows were not moved.

    The converter takes the two halves of a head's rows apart and lays them alternately, so that
    the pair that rotates together lies together.
    """
    if not mapped.heads:
        return None
    rows = mapped.tensor.shape[0]
    if rows % (2 * mapped.heads):
        raise ShapeMismatch(
            f"{mapped.tensor.rows.path}: {mapped.tensor.name} has {rows} rows, which are not "
            f"{mapped.heads} heads of an even length"
        )
    half = rows // mapped.heads // 2
    return np.arange(rows).reshape(mapped.heads, half, 2).swapaxes(1, 2).reshape(-1)
