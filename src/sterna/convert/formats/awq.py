"""AWQ checkpoints (AutoAWQ's GEMM layout): 4 bits with zero points.

`qweight` u32 [K, N / 8] packs eight neighbouring outputs into a word, `qzeros` [G, N / 8] likewise,
both in the order 0 2 4 6 1 3 5 7 from the lowest bits; `scales` [G, N].
weight[n, k] = (code - zero) * scale. Out: the same codes by rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sterna.base.dtype import F16
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
)
from sterna.convert.stored import Parts, StoredTensor, packed
from sterna.quantize.stored_schemes import ROW_GROUP, grid

_SOURCE = "quantization_config of an AWQ model"
_PARTS = ("qweight", "qzeros", "scales")
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output of each nibble, lowest first


def stored_tensors(refs: Refs, section: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight. Raises UnsupportedModel for other layouts than GEMM and other bits than 4."""
    bits = number(section, "bits", section.get("w_bit", 4), _SOURCE)
    if bits != 4:
        raise refuse(_SOURCE, f"{bits} bits", "possible: 4")
    version = str(section.get("version", "gemm")).lower()
    if version != "gemm":
        raise refuse(_SOURCE, f"the layout {version[:40]!r}", "possible: 'gemm'")
    if section.get("zero_point", True) is not True:
        raise refuse(_SOURCE, "zero_point false", "possible: true")
    size = number(section, "group_size", section.get("q_group_size", 128), _SOURCE)
    found, others = modules(refs, _PARTS, ("qweight",))
    return others | {module.weight: _stored(module, size) for module in found}


def _stored(module: PackedModule, size: int) -> StoredTensor:
    depth, words = module.part("qweight").shape
    rows = words * 8
    group = depth if size == -1 else size
    groups = groups_of(depth, group, module.path)
    zeros = module.expect("qzeros", (groups, words))
    scales = module.expect("scales", (groups, rows))
    within = ROW_GROUP if size == -1 else group
    scheme = grid(4, within, F16, scales.dtype)

    def read() -> Parts:
        scale, zero = finite(scales.read(), scales.name).T, _codes(zeros.read()).T
        if within != group:
            scale, zero = (np.repeat(part, -(-depth // within), axis=1) for part in (scale, zero))
        codes = np.ascontiguousarray(_codes(module.part("qweight").read()).T)
        return {
            "q_weight": pack_rows(codes, scheme),
            "q_scale": np.ascontiguousarray(scale),
            "q_zero": np.ascontiguousarray(zero),
        }

    return packed(module.weight, (rows, depth), scheme, module.refs(), read)


def _codes(words: Array) -> Array:
    """[R, N / 8] words as [R, N] codes in the order of outputs."""
    unsigned = np.ascontiguousarray(words).view(np.uint32)
    codes = np.empty((*words.shape, 8), np.uint8)
    for nibble, output in enumerate(_ORDER):
        codes[..., output] = unsigned >> np.uint32(4 * nibble) & np.uint32(15)
    return codes.reshape(words.shape[0], words.shape[1] * 8)
