"""GPTQ checkpoints (AutoGPTQ, GPTQModel): 2, 3, 4 and 8 bits, act-order or not.

`qweight` u32 [K * bits / 32, N] packs codes along K, lowest bits first; `qzeros` [G, N * bits / 32]
packs zero points along N, less 1 in the format's first version; `scales` [G, N]; `g_idx` [K] says
which group a column of the weight belongs to. weight[n, k] = (code - zero) * scale. Out: the same
codes by rows. Columns out of order keep their index: they are not moved, nor are activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sterna.base.dtype import F16
from sterna.base.errors import ShapeMismatch, UnsafeFile
from sterna.convert.formats.modules import (
    Array,
    PackedModule,
    Refs,
    finite,
    groups_of,
    modules,
    number,
    refuse,
)
from sterna.convert.stored import Parts, StoredTensor, packed
from sterna.quantize.codes import pack_codes, unpack_codes
from sterna.quantize.scheme import Scheme
from sterna.quantize.stored_schemes import ROW_GROUP, grid, indexed_grid

_SOURCE = "quantization_config of a GPTQ model"
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_BITS = (2, 3, 4, 8)


def stored_tensors(refs: Refs, section: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight. Raises UnsupportedModel for other layouts (Marlin) and rules by module."""
    bits = number(section, "bits", None, _SOURCE)
    if bits not in _BITS:
        raise refuse(_SOURCE, f"{bits} bits", f"possible: {_BITS}")
    if section.get("is_marlin_format") or section.get("dynamic"):
        raise refuse(_SOURCE, "a Marlin layout or rules by module", "possible: plain GPTQ")
    version = section.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise refuse(_SOURCE, f"checkpoint_format {version!r}", "possible: 'gptq', 'gptq_v2'")
    found, others = modules(refs, _PARTS, ("qweight",))
    size = number(section, "group_size", -1, _SOURCE)
    same_zero = section.get("sym", True) is True
    less = 1 if version == "gptq" else 0
    return others | {m.weight: _stored(m, bits, size, same_zero, less) for m in found}


def _stored(module: PackedModule, bits: int, size: int, same_zero: bool, less: int) -> StoredTensor:
    words, rows = _matrix(module.part("qweight").shape, module)
    depth = words * 32 // bits
    group = depth if size == -1 else size
    groups = groups_of(depth, group, module.path)
    scales = module.expect("scales", (groups, rows))
    zeros = module.expect("qzeros", (groups, rows * bits // 32))
    index = _index(module, depth, groups)
    in_order = (index == np.arange(depth) // group).all()
    within = ROW_GROUP if size == -1 else group  # a scale a row is repeated
    middle = 1 << (bits - 1)
    if in_order:
        scheme = grid(bits, within, F16, scales.dtype, zero=middle if same_zero else None)
    else:
        scheme = indexed_grid(bits, within, F16, scales.dtype)
    by_columns = grid(bits, 32, F16, F16)

    def read() -> Parts:
        codes = unpack_codes(_columns(module.part("qweight").read()), by_columns)
        zero = unpack_codes(_words(zeros.read()), by_columns).T + np.uint8(less)
        zero &= np.uint8((1 << bits) - 1)
        scale = finite(scales.read(), scales.name).T
        if within != group:
            scale, zero = (np.repeat(part, -(-depth // within), axis=1) for part in (scale, zero))
        parts = {"q_weight": pack_rows(codes, scheme), "q_scale": np.ascontiguousarray(scale)}
        if scheme.affine:
            parts["q_zero"] = np.ascontiguousarray(zero)
        elif (zero != middle).any():
            raise UnsafeFile(
                f"{zeros.name} in {zeros.path} has zero points other than {middle}, though the "
                "configuration calls the model symmetric"
            )
        if scheme.indexed:
            parts["q_group"] = index.astype(np.int32)
        return parts

    return packed(module.weight, (rows, depth), scheme, module.refs(), read)


def pack_rows(codes: Array, scheme: Scheme) -> Array:
    """Codes [N, K] as the words of a scheme, filled with zeros up to whole groups."""
    ragged = -codes.shape[1] % scheme.unit
    whole = np.pad(codes, ((0, 0), (0, ragged))) if ragged else codes
    return pack_codes(whole, scheme)


def _matrix(shape: tuple[int, ...], module: PackedModule) -> tuple[int, int]:
    if len(shape) != 2:
        raise ShapeMismatch(f"{module.path}.qweight has the shape {list(shape)}, not a matrix's")
    return shape[0], shape[1]


def _words(values: Array) -> Array:
    """i32 read as u32."""
    return np.ascontiguousarray(values).view(np.uint32)


def _columns(values: Array) -> Array:
    """Words that run down the columns, as rows."""
    return _words(np.ascontiguousarray(values.T))


def _index(module: PackedModule, depth: int, groups: int) -> Array:
    """The group of each column: as `g_idx` says, else in order."""
    if "g_idx" not in module.parts:
        return np.arange(depth) // (depth // groups)
    ref = module.expect("g_idx", (depth,))
    index = ref.read()
    if index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= groups:
        raise UnsafeFile(f"{ref.name} in {ref.path} names groups outside 0 to {groups - 1}")
    return index
