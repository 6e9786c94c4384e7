"""MXFP4 experts as gpt-oss publishes them: 4-bit floats with a power of two for every 32.

`blocks` u8 [experts, out, in / 32, 16] has two floats a byte, the first in the low half; `scales`
u8 [experts, out, in / 32] the exponents of two, plus 127. Codes are the words of the scheme as they
lie. Source: Open Compute Project 2023, "Microscaling Formats (MX) v1.0".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sterna.base.dtype import U8
from sterna.base.errors import ShapeMismatch
from sterna.convert.formats.modules import Refs, finite
from sterna.convert.stored import Parts, StoredTensor, plain
from sterna.quantize.ggml_blocks import GGML_SCHEMES, powers_of_two

_BLOCKS, _SCALES = "_blocks", "_scales"
_SCHEME = GGML_SCHEMES["MXFP4"]


def stored_tensors(refs: Refs, section: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight; the section names what is not packed, which the tensors say themselves."""
    found: dict[str, StoredTensor] = {}
    for name, ref in refs.items():
        if name.endswith(_BLOCKS) and name.removesuffix(_BLOCKS) + _SCALES in refs:
            stem = name.removesuffix(_BLOCKS)
            found[stem] = _stored(stem, refs)
        elif not (name.endswith(_SCALES) and name.removesuffix(_SCALES) + _BLOCKS in refs):
            found[name] = plain(ref)
    return found


def _stored(name: str, refs: Refs) -> StoredTensor:
    blocks, scales = refs[name + _BLOCKS], refs[name + _SCALES]
    fits = len(blocks.shape) == 4 and blocks.shape[3] * 2 == _SCHEME.group
    if not fits or scales.shape != blocks.shape[:3] or {blocks.dtype, scales.dtype} != {U8}:
        raise ShapeMismatch(
            f"{blocks.name} in {blocks.path} is {blocks.dtype} {list(blocks.shape)} with scales "
            f"{scales.dtype} {list(scales.shape)}; MXFP4 needs u8 [experts, out, groups, 16] and "
            "u8 [experts, out, groups]"
        )
    experts, rows, groups, _ = blocks.shape

    def read(first: int, last: int) -> Parts:
        codes = blocks.rows(first, last).read().reshape(last - first, rows, -1)
        powers = powers_of_two(scales.rows(first, last).read())
        return {"q_weight": codes.view(np.uint32), "q_scale": finite(powers, scales.name)}

    return StoredTensor(
        name, (experts, rows, groups * _SCHEME.group), _SCHEME.compute,
        blocks.nbytes + scales.nbytes, blocks.path, read, _SCHEME,
    )  # fmt: skip
