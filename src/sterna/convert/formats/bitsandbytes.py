"""bitsandbytes checkpoints: 4 bits (NF4 and FP4, scales quantized again or not) and 8 bits.

4 bits: `weight` u8 [N * K / 2, 1] holds codes in C order, the first of two in the high half;
`absmax` a scale for every 64 of them, or an 8-bit code of one, `nested_quant_map` of it times
`nested_absmax` of every 256, plus an offset; `quant_map` what the 16 codes stand for; the shape and
the rest lie as JSON in a tensor. 8 bits: `weight` i8 [N, K] and `SCB` [N], 127 times a row's scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sterna.base.dtype import F16, F32, I8, U8
from sterna.base.errors import MissingTensor, ShapeMismatch, UnsafeFile
from sterna.checkpoint.config import field, parse_json
from sterna.convert.formats.fp8 import spread
from sterna.convert.formats.gptq import pack_rows
from sterna.convert.formats.modules import (
    Array,
    PackedModule,
    Refs,
    finite,
    groups_of,
    modules,
    refuse,
)
from sterna.convert.stored import Parts, StoredTensor, packed
from sterna.quantize.stored_schemes import FP4, NF4, ROW_GROUP, grid, table

_SOURCE = "quantization_config of a bitsandbytes model"
_STATE = "weight.quant_state.bitsandbytes__"
_LEVELS = {"nf4": NF4, "fp4": FP4}
_PARTS = (
    "weight", "SCB", "weight_format", "weight.absmax", "weight.quant_map", "weight.nested_absmax",
    "weight.nested_quant_map", *(f"{_STATE}{kind}" for kind in _LEVELS),
)  # fmt: skip


def stored_tensors(refs: Refs, section: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight, whichever of the two kinds it is."""
    if not (section.get("load_in_4bit") or section.get("load_in_8bit")):
        raise refuse(_SOURCE, "neither load_in_4bit nor load_in_8bit", "possible: one of them")
    marks = ("SCB", *(f"{_STATE}{kind}" for kind in _LEVELS))
    found, others = modules(refs, _PARTS, marks)
    return others | {module.weight: _stored(module) for module in found}


def _stored(module: PackedModule) -> StoredTensor:
    return _eight_bits(module) if "SCB" in module.parts else _four_bits(module)


def _eight_bits(module: PackedModule) -> StoredTensor:
    ref = module.part("weight")
    if len(ref.shape) != 2 or ref.dtype != I8:
        raise ShapeMismatch(f"{ref.name} in {ref.path} is no matrix of 8-bit integers")
    rows, depth = ref.shape
    scales = module.expect("SCB", (rows,))
    scheme = grid(8, ROW_GROUP, F16, F32, zero=128)

    def read() -> Parts:
        scale = finite(scales.read(), scales.name).astype(np.float32) / np.float32(127)
        codes = ref.read().view(np.uint8) ^ np.uint8(0x80)
        return {"q_weight": pack_rows(codes, scheme), "q_scale": spread(scale, rows, depth, None)}

    return packed(module.weight, (rows, depth), scheme, module.refs(), read)


def _four_bits(module: PackedModule) -> StoredTensor:
    kind = next(kind for kind in _LEVELS if f"{_STATE}{kind}" in module.parts)
    state = _state(module, kind)
    rows, depth = _shape(state, module)
    size = field(state, "blocksize", int, module.path)
    groups_of(depth, size, f"{module.path} (blocks over the ends of rows are not read)")
    codes = module.part("weight")
    if codes.dtype != U8 or codes.nbytes * 2 != rows * depth:
        raise ShapeMismatch(f"{codes.name} in {codes.path} does not hold [{rows}, {depth}] codes")
    levels = tuple(float(level) for level in module.expect("weight.quant_map", (16,)).read())
    if not np.allclose(levels, _LEVELS[kind], atol=1e-6):
        raise refuse(_SOURCE, f"other levels than {kind}'s", f"possible: {', '.join(_LEVELS)}")
    scheme = table(kind, levels, size, F16, F32)

    def read() -> Parts:
        pairs = codes.read().reshape(-1)
        unpacked = np.stack((pairs >> 4, pairs & 15), axis=-1).reshape(rows, depth)
        scale = _absmax(module, state, rows * depth // size)
        return {"q_weight": pack_rows(unpacked, scheme), "q_scale": scale.reshape(rows, -1)}

    return packed(module.weight, (rows, depth), scheme, module.refs(), read)


def _state(module: PackedModule, kind: str) -> dict[str, Any]:
    ref = module.part(f"{_STATE}{kind}")
    if ref.dtype != U8 or ref.nbytes > 1 << 16:
        raise UnsafeFile(f"{ref.name} in {ref.path} is no JSON text of a reasonable length")
    return parse_json(ref.read().tobytes(), f"{ref.name} in {ref.path}")


def _shape(state: Mapping[str, Any], module: PackedModule) -> tuple[int, int]:
    shape = field(state, "shape", list, module.path)
    if len(shape) != 2 or any(type(n) is not int or not 0 < n < 1 << 31 for n in shape):
        raise UnsafeFile(f"{module.path} has the shape {shape!r:.60}, which is no matrix's")
    return shape[0], shape[1]


def _absmax(module: PackedModule, state: Mapping[str, Any], count: int) -> Array:
    """A float32 scale for every block, restored as the library does where they are codes."""
    ref = module.part("weight.absmax")
    if ref.shape != (count,):
        raise ShapeMismatch(f"{ref.name} in {ref.path} has {list(ref.shape)}, not [{count}] scales")
    found = ref.read()
    if ref.dtype == F32:
        return finite(found, ref.name)
    if ref.dtype != U8 or "weight.nested_absmax" not in module.parts:
        raise MissingTensor(f"{ref.name} in {ref.path} has neither scales nor nested ones")
    block = field(state, "nested_blocksize", int, module.path)
    table_, outer = (
        module.part(f"weight.nested_{name}").read() for name in ("quant_map", "absmax")
    )
    if table_.shape != (256,) or block <= 0 or outer.shape != (-(-count // block),):
        raise ShapeMismatch(f"{module.path}: its nested scales do not fit {count} scales")
    offset = np.float32(field(state, "nested_offset", float, module.path))
    wide = np.repeat(outer.astype(np.float32), block)[:count]
    return finite(table_.astype(np.float32)[found] * wide + offset, ref.name)
