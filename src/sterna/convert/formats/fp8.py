"""FP8 checkpoints: E4M3 weights with a scale for a tensor, a row, or a block of 128 x 128.

`weight` [N, K] holds E4M3 floats; `weight_scale_inv` [N / 128, K / 128] multiplies a block (as
DeepSeek publishes), `weight_scale` a tensor or its rows. Scales are repeated for every row and
every group of it; the floats stay as they are. Scales of activations are passed over: activations
are not rounded to 8 bits here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sterna.base.dtype import BF16, F32, DType
from sterna.base.errors import ShapeMismatch, UnsafeFile
from sterna.checkpoint.tensor import E4M3, TensorRef
from sterna.convert.formats.gptq import pack_rows
from sterna.convert.formats.modules import (
    Array,
    PackedModule,
    Refs,
    finite,
    modules,
    refuse,
    without_cache_scales,
)
from sterna.convert.stored import Parts, StoredTensor, packed
from sterna.quantize.stored_schemes import ROW_GROUP, small_float

_SOURCE = "quantization_config of an FP8 model"
PARTS = ("weight", "weight_scale", "weight_scale_inv", "input_scale", "activation_scale")
_NAN = 0x7F  # E4M3 keeps this code, and the same with its sign set, for what is no number


def stored_tensors(refs: Refs, section: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight. Raises UnsupportedModel for E5M2 and blocks that are not square."""
    if section.get("fmt", "e4m3") != "e4m3":
        raise refuse(_SOURCE, f"the format {section['fmt']!r:.40}", "possible: 'e4m3'")
    block = section.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    ):
        raise refuse(_SOURCE, f"weight_block_size {block!r:.60}", "possible: two numbers, or null")
    found, others = modules(refs, PARTS, ("weight_scale", "weight_scale_inv"))
    size = (block[0], block[1]) if block else None
    return without_cache_scales(others) | {
        module.weight: stored_float(module, size) for module in found
    }


def stored_float(module: PackedModule, block: tuple[int, int] | None) -> StoredTensor:
    """One weight; `block` is the size of the blocks that share a scale, None for rows or all."""
    ref = module.part("weight")
    if ref.encoding != E4M3 or len(ref.shape) != 2:
        raise ShapeMismatch(f"{ref.name} in {ref.path} is no matrix of E4M3 floats")
    rows, depth = ref.shape
    scales = module.parts.get("weight_scale_inv") or module.part("weight_scale")
    if not scales.dtype.is_float:
        raise ShapeMismatch(f"{scales.name} in {scales.path} has dtype {scales.dtype}, not a float")
    group = block[1] if block else ROW_GROUP
    _check_scales(scales, rows, depth, block)
    scheme = small_float(8, 4, group, BF16, _scale_dtype(scales.dtype))

    def read() -> Parts:
        codes = ref.read()
        if (codes & np.uint8(_NAN) == _NAN).any():
            raise UnsafeFile(f"{ref.name} in {ref.path} holds NaN weights; get the model again")
        scale = finite(scales.read(), scales.name).astype(scheme.scale_dtype.numpy)
        return {"q_weight": pack_rows(codes, scheme), "q_scale": spread(scale, rows, depth, block)}

    return packed(module.weight, (rows, depth), scheme, module.refs(), read)


def _scale_dtype(dtype: DType) -> DType:
    return dtype if dtype.bits <= 32 else F32


def _check_scales(ref: TensorRef, rows: int, depth: int, block: tuple[int, int] | None) -> None:
    if block is not None:
        wanted: list[tuple[int, ...]] = [(-(-rows // block[0]), -(-depth // block[1]))]
    else:
        wanted = [(), (1,), (1, 1), (rows,), (rows, 1)]
    if ref.shape not in wanted:
        raise ShapeMismatch(
            f"{ref.name} in {ref.path} has the shape {list(ref.shape)}; a weight [{rows}, {depth}] "
            f"calls for {' or '.join(str(list(shape)) for shape in wanted)}"
        )


def spread(scale: Array, rows: int, depth: int, block: tuple[int, int] | None) -> Array:
    """Scales [N, groups of a row] from those of blocks, rows or the whole tensor."""
    if block is not None:
        return np.ascontiguousarray(np.repeat(scale, block[0], axis=0)[:rows])
    column = np.broadcast_to(scale.reshape(-1, 1), (rows, 1))
    return np.ascontiguousarray(np.repeat(column, -(-depth // ROW_GROUP), axis=1))
