"""MLX checkpoints: affine codes of 2 to 8 bits, embeddings and head among them.

`weight` u32 [N, K * bits / 32] runs codes along K, lowest bits first; `scales` and `biases` [N, G].
weight[n, k] = code * scale + bias. The words stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sterna.base.dtype import F16
from sterna.base.errors import ShapeMismatch
from sterna.convert.formats.modules import (
    PackedModule,
    Refs,
    finite,
    groups_of,
    modules,
    number,
    refuse,
)
from sterna.convert.stored import Parts, StoredTensor, packed
from sterna.quantize.stored_schemes import offset_grid

_SOURCE = "the quantization of an MLX model"
_PARTS = ("weight", "scales", "biases")
_BITS = (2, 3, 4, 5, 6, 8)


def stored_tensors(refs: Refs, section: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every weight. Raises UnsupportedModel for modes that are not affine."""
    found, others = modules(refs, _PARTS, ("scales",))
    return others | {m.weight: _stored(m, _of_module(section, m.path)) for m in found}


def _of_module(section: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """The section with what it says of one module on top."""
    own = section.get(path)
    return {**section, **own} if isinstance(own, Mapping) else section


def _stored(module: PackedModule, section: Mapping[str, Any]) -> StoredTensor:
    if section.get("mode", "affine") != "affine":
        raise refuse(_SOURCE, f"the mode {section['mode']!r:.40}", "possible: 'affine'")
    bits = number(section, "bits", None, _SOURCE)
    if bits not in _BITS:
        raise refuse(_SOURCE, f"{bits} bits", f"possible: {_BITS}")
    group = number(section, "group_size", None, _SOURCE)
    codes = module.part("weight")
    if len(codes.shape) != 2 or codes.shape[1] * 32 % bits:
        raise ShapeMismatch(
            f"{codes.name} in {codes.path} has the shape {list(codes.shape)}, which is no matrix "
            f"of {bits}-bit codes"
        )
    rows, depth = codes.shape[0], codes.shape[1] * 32 // bits
    groups = groups_of(depth, group, module.path)
    scales, biases = (module.expect(leaf, (rows, groups)) for leaf in ("scales", "biases"))
    scheme = offset_grid(bits, group, F16, scales.dtype)

    def read() -> Parts:
        return {
            "q_weight": codes.read().view(np.uint32),
            "q_scale": finite(scales.read(), scales.name),
            "q_min": finite(biases.read(), biases.name).astype(scales.dtype.numpy, copy=False),
        }

    return packed(module.weight, (rows, depth), scheme, module.refs(), read)
