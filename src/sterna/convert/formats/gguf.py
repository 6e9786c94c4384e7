"""GGUF: blocks of the file become parts of schemes, bit for bit.

In: an opened file. Out: its StoredTensors under the checkpoint's names, as `gguf_layouts` puts them
back from what llama.cpp's converter made of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sterna.base.dtype import BF16, F16, F32, F64, DType
from sterna.checkpoint.gguf import GgufFile, GgufTensor
from sterna.convert.gguf_model import Mapped, checkpoint_tensors, config_json
from sterna.convert.stored import Parts, StoredTensor
from sterna.quantize.ggml_blocks import GGML_SCHEMES, split_blocks

_PLAIN: dict[str, DType] = {"F32": F32, "F16": F16, "BF16": BF16, "F64": F64}


def stored_tensors(file: GgufFile) -> dict[str, StoredTensor]:
    """Every weight of the file.

    Raises what `checkpoint_tensors` and `config_json` do, ShapeMismatch and MissingTensor.
    """
    config = config_json(file)
    return {name: _made(mapped, config) for name, mapped in checkpoint_tensors(file).items()}


def _made(mapped: Mapped, config: dict[str, Any]) -> StoredTensor:
    parts = [_stored(tensor) for tensor in mapped.tensors]
    return replace(mapped.undo(parts, config), name=mapped.name)


def _stored(tensor: GgufTensor) -> StoredTensor:
    scheme = GGML_SCHEMES.get(tensor.type.name)
    dtype = _PLAIN[tensor.type.name] if scheme is None else scheme.compute

    def read(first: int, last: int) -> Parts:
        return _parts(tensor, first, last)

    return StoredTensor(
        tensor.name, tensor.shape, dtype, tensor.rows.nbytes, tensor.rows.path, read, scheme
    )


def _parts(tensor: GgufTensor, first: int, last: int) -> Parts:
    kind = tensor.type.name
    if len(tensor.shape) == 1:
        values = tensor.rows.read().view(_PLAIN[kind].numpy).reshape(-1)[first:last]
        return {"weight": values}
    inner = int(np.prod(tensor.shape[1:-1], dtype=np.int64))
    raw = tensor.rows.rows(first * inner, last * inner).read()
    lead = (last - first, *tensor.shape[1:-1])
    if kind in _PLAIN:
        return {"weight": raw.view(_PLAIN[kind].numpy).reshape(*lead, tensor.shape[-1])}
    parts = split_blocks(raw, kind, name=f"{tensor.name} in {tensor.rows.path}")
    return {key: part.reshape(*lead, part.shape[-1]) for key, part in parts.items()}
