"""Which variant of a scheme a file holds: read from the shapes of its packed tensors.

In: the scheme a folder names, and the shapes of `q_weight`, `q_scale` and of the weight the config
calls for. Out: the same scheme with the group, layout and packing that are actually stored.
It does not read files or values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sterna.base.errors import ShapeMismatch
from sterna.quantize.pack import packed_spec
from sterna.quantize.scheme import Layout, Packing, Scheme

Shape = tuple[int, ...]


def infer(scheme: Scheme, q_weight: Shape, q_scale: Shape, weight: Shape) -> Scheme:
    """The variant of `scheme` whose packed tensors have these shapes; raise ShapeMismatch if none.

    What the scheme itself says wins where shapes alone leave a choice. Zero points have the shape
    of the scales, so whether a variant is affine is for the scheme's name to say.
    """
    if not scheme.is_quantized:
        raise ShapeMismatch(
            f"{scheme.name} has plain weights, but q_weight {list(q_weight)} is quantized; "
            "name the scheme it was made with"
        )
    if len(weight) in (2, 3) and len(q_weight) == len(q_scale) == len(weight):
        for variant in _variants(scheme, q_weight, q_scale):
            spec = packed_spec(weight, variant)
            if spec["q_weight"][0] == q_weight and spec["q_scale"][0] == q_scale:
                return variant
    raise ShapeMismatch(
        f"q_weight {list(q_weight)} and q_scale {list(q_scale)} are not a {scheme.bits}-bit weight "
        f"of shape {list(weight)} in any group size or layout; is this folder really {scheme.name}?"
    )


def _variants(scheme: Scheme, q_weight: Shape, q_scale: Shape) -> Iterator[Scheme]:
    """The scheme itself, then other layouts and packings with the group size they imply."""
    yield scheme
    layouts: tuple[Layout, ...] = ("NK", "KN") if scheme.layout == "NK" else ("KN", "NK")
    packings: tuple[Packing, ...] = ("word", "stream")
    for layout in layouts:
        axis = 0 if layout == "KN" and len(q_weight) == 2 else -1
        words, groups = q_weight[axis], q_scale[axis]
        for packing in packings if scheme.packing == "word" else packings[::-1]:
            base = replace(scheme, group=0, layout=layout, packing=packing)
            if (
                words
                and groups
                and words % groups == 0
                and words // groups % base.words_per_period == 0
            ):
                periods = words // groups // base.words_per_period
                yield replace(base, group=periods * base.codes_per_period)
