"""compressed-tensors checkpoints (llm-compressor): packed and plain integers, and FP8.

pack-quantized: `weight_packed` i32 [N, K * bits / 32] runs codes along K, lowest bits first, each
2^(bits - 1) above its signed value; `weight_scale` [N, G]; `weight_zero_point` packed alike along
N; `weight_g_idx` [K] for act-order. int-quantized: `weight` i8 [N, K]. float-quantized: as FP8.
Scales of activations are passed over: activations are not rounded to 8 bits here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sterna.base.dtype import F16, I8
from sterna.base.errors import ShapeMismatch, UnsafeFile
from sterna.convert.formats.fp8 import spread, stored_float
from sterna.convert.formats.gptq import pack_rows
from sterna.convert.formats.modules import (
    Array,
    PackedModule,
    Refs,
    finite,
    groups_of,
    modules,
    number,
    refuse,
    without_cache_scales,
)
from sterna.convert.stored import Parts, StoredTensor, packed
from sterna.quantize.codes import unpack_codes
from sterna.quantize.stored_schemes import ROW_GROUP, grid, indexed_grid

_SOURCE = "quantization_config of a compressed-tensors model"
_PARTS = (
    "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
    "input_scale", "input_zero_point", "k_scale", "v_scale",
)  # fmt: skip
_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_OTHER = ("sparsity_config", "transform_config")


def stored_tensors(refs: Refs, section: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight. Raises UnsupportedModel for other formats, sparsity and transforms."""
    layout = section.get("format")
    if layout not in _FORMATS:
        raise refuse(_SOURCE, f"the format {layout!r:.60}", f"possible: {', '.join(_FORMATS)}")
    for key in _OTHER:
        if section.get(key):
            raise refuse(_SOURCE, f"{key}", "possible: none")
    weights = _weights(section)
    found, others = modules(refs, _PARTS, ("weight_packed", "weight_scale"))
    return without_cache_scales(others) | {
        module.weight: _stored(module, weights) for module in found
    }


def _weights(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """How weights are quantized, which must be one way for all modules."""
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise UnsafeFile(f"{_SOURCE} has no config_groups")
    found = [g.get("weights") for g in groups.values() if isinstance(g, Mapping)]
    if not found or any(one != found[0] for one in found) or not isinstance(found[0], Mapping):
        raise refuse(_SOURCE, "several ways to quantize weights", "possible: one for all")
    return found[0]


def _stored(module: PackedModule, weights: Mapping[str, Any]) -> StoredTensor:
    if weights.get("type") == "float":
        if number(weights, "num_bits", None, _SOURCE) != 8:
            raise refuse(_SOURCE, "floats of other than 8 bits", "possible: 8")
        return stored_float(module, _block(weights))
    bits = number(weights, "num_bits", None, _SOURCE)
    if bits not in (2, 3, 4, 8):
        raise refuse(_SOURCE, f"{bits} bits", "possible: 2, 3, 4, 8")
    return _integers(module, weights, bits)


def _block(weights: Mapping[str, Any]) -> tuple[int, int] | None:
    if weights.get("strategy") != "block":
        return None
    block = weights.get("block_structure")
    if not isinstance(block, list) or len(block) != 2:
        raise refuse(_SOURCE, f"block_structure {block!r:.60}", "possible: two numbers")
    return int(block[0]), int(block[1])


def _integers(module: PackedModule, weights: Mapping[str, Any], bits: int) -> StoredTensor:
    is_packed = "weight_packed" in module.parts
    codes = module.part("weight_packed" if is_packed else "weight")
    if len(codes.shape) != 2 or (not is_packed and codes.dtype != I8):
        raise ShapeMismatch(f"{codes.name} in {codes.path} is no matrix of integer codes")
    rows, depth = codes.shape[0], _depth(module, codes.shape[1] * (32 // bits if is_packed else 1))
    by_group = weights.get("strategy") == "group"
    group = number(weights, "group_size", None, _SOURCE) if by_group else ROW_GROUP
    scales = module.part("weight_scale")
    if by_group:
        module.expect("weight_scale", (rows, groups_of(depth, group, module.path)))
    elif scales.shape not in ((1,), (), (rows,), (rows, 1)):
        raise ShapeMismatch(f"{scales.name} has the shape {list(scales.shape)} for {rows} rows")
    affine = weights.get("symmetric") is False
    middle = 1 << (bits - 1)
    index = module.parts.get("weight_g_idx")
    if index is not None:
        scheme = indexed_grid(bits, group, F16, scales.dtype)
    else:
        scheme = grid(bits, group, F16, scales.dtype, zero=None if affine else middle)
    words = grid(bits, 32, F16, F16)

    def read() -> Parts:
        if is_packed:
            unpacked = unpack_codes(codes.read().view(np.uint32), words)[:, :depth]
        else:
            unpacked = codes.read().view(np.uint8) + np.uint8(middle)
        scale = finite(scales.read(), scales.name)
        parts = {"q_weight": pack_rows(np.ascontiguousarray(unpacked), scheme),
                 "q_scale": scale if by_group else spread(scale, rows, depth, None)}  # fmt: skip
        if scheme.affine:
            parts["q_zero"] = _zeros(module, bits, parts["q_scale"].shape, affine)
        if index is not None:
            parts["q_group"] = index.read().astype(np.int32)
        return parts

    return packed(module.weight, (rows, depth), scheme, module.refs(), read)


def _depth(module: PackedModule, stored: int) -> int:
    """Columns of the weight: the last word may be filled up."""
    if "weight_shape" not in module.parts:
        return stored
    shape = module.expect("weight_shape", (2,)).read()
    if not stored - 32 < int(shape[1]) <= stored:
        raise ShapeMismatch(f"{module.path}.weight_shape does not fit its {stored} codes a row")
    return int(shape[1])


def _zeros(module: PackedModule, bits: int, shape: tuple[int, ...], affine: bool) -> Array:
    middle = np.uint8(1 << (bits - 1))
    if not affine:
        return np.full(shape, middle, np.uint8)
    ref = module.part("weight_zero_point")
    found = ref.read()
    if found.dtype == np.int32:  # packed along the rows
        words = np.ascontiguousarray(found.T).view(np.uint32)
        codes = unpack_codes(words, grid(bits, 32, F16, F16))[:, : shape[0]].T
    else:
        codes = found.astype(np.int8).view(np.uint8) + middle
    if codes.shape[0] != shape[0] or shape[1] % codes.shape[1]:
        raise ShapeMismatch(f"{ref.name} in {ref.path} has the shape {list(ref.shape)}")
    return np.ascontiguousarray(np.repeat(codes, shape[1] // codes.shape[1], axis=1))
