"""Weights against fp16: how large they are, by scheme and by group of the model they belong to.

In: the tensors of a folder or of a library, and the scheme's name. Out: Weights, a packed one's
codes, scales and zero points as one, and the sections that show them. It reads no values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from sterna.base.dtype import DType
from sterna.base.errors import ShapeMismatch
from sterna.inspection.document import Table, one_line, size
from sterna.quantize.scheme import MLC_SCHEMES, SCHEMES, Packing, Scheme

Shape = tuple[int, ...]

_HEAD = ("weights", "parameters", "bytes", "share", "fp16", "compression", "bits/weight")
_PARTS = ("q_weight", "q_scale", "q_zero", "q_min", "q_outer", "q_outer_min", "q_group")
_NO_SCHEMES: Mapping[str, Scheme] = MappingProxyType({})
# What a module is for, by a word in its path; the first that fits. Families differ in the rest.
_GROUPS = (
    ("norm", ("norm", "ln_")),
    ("head", ("lm_head", "embed_out", "output_layer")),
    ("embedding", ("embed", "wte", "wpe")),
    ("attention", ("attn", "attention", "q_proj", "k_proj", "v_proj", "qkv")),
    ("mlp", ("mlp", "experts", "ffn", "feed_forward", "gate_proj", "up_proj", "down_proj")),
)
GROUPS = ("embedding", "attention", "mlp", "norm", "head", "other")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file or a library has it; `bytes` are those it takes there."""

    name: str
    dtype: DType
    shape: Shape
    bytes: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight with all its parts. `scheme` says how it is stored."""

    name: str
    group: str
    scheme: str
    parameters: int
    bytes: int

    @property
    def fp16_bytes(self) -> int:
        return 2 * self.parameters


def weights_of(
    tensors: Iterable[StoredTensor],
    quantization: str,
    shapes: Mapping[str, Shape],
    schemes: Mapping[str, Scheme] = _NO_SCHEMES,
) -> list[Weight]:
    """Put the parts of packed weights together.

    `shapes` are those of weights before packing, by name ("model.norm.weight"); where one is not
    known, parameters are counted in whole groups. `schemes` are those of weights that have one of
    their own; packed weights of a quantization that is no scheme's name, without one of their own,
    count no parameters. Raises ShapeMismatch where scales and codes do not fit.
    """
    packed: dict[str, dict[str, StoredTensor]] = {}
    for tensor in tensors:
        module, _, leaf = tensor.name.rpartition(".")
        name = f"{module}.weight" if leaf in _PARTS else tensor.name
        packed.setdefault(name, {})[leaf] = tensor
    named = SCHEMES.get(quantization) or MLC_SCHEMES.get(quantization)
    return [
        _weight(name, parts, schemes.get(name, named), shapes.get(name))
        for name, parts in packed.items()
    ]


def group_of(name: str) -> str:
    """The part of a model that a weight belongs to: one of GROUPS."""
    words = name.split(".")[:-1]
    if words and any(mark in words[-1] for mark in _GROUPS[0][1]):
        return "norm"
    for group, marks in _GROUPS[1:]:
        if any(mark in word for word in words for mark in marks):
            return group
    return "other"


def by_scheme(weights: list[Weight]) -> Table:
    """Sizes by scheme, in order of first appearance."""
    return _sizes("scheme", weights, lambda weight: weight.scheme)


def by_group(weights: list[Weight]) -> Table:
    """Sizes by group, in the order of a forward pass."""
    ordered = sorted(weights, key=lambda weight: GROUPS.index(weight.group))
    return _sizes("group", ordered, lambda weight: weight.group)


def split(weights: list[Weight], key: Callable[[Weight], str]) -> dict[str, list[Weight]]:
    """Weights by what `key` says of them."""
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        found.setdefault(key(weight), []).append(weight)
    return found


def compression(weights: list[Weight]) -> str:
    """How many times smaller than in fp16, as "3.56 x"; "-" for nothing."""
    stored = sum(weight.bytes for weight in weights)
    return f"{sum(weight.fp16_bytes for weight in weights) / stored:.2f} x" if stored else "-"


def _sizes(name: str, weights: list[Weight], key: Callable[[Weight], str]) -> Table:
    total = sum(weight.bytes for weight in weights)
    rows = [_row(label, some, total) for label, some in split(weights, key).items()]
    return Table((name, *_HEAD), (*rows, _row("total", weights, total)), summed=True)


def _row(label: str, weights: list[Weight], total: int) -> tuple[str, ...]:
    stored = sum(weight.bytes for weight in weights)
    parameters = sum(weight.parameters for weight in weights)
    return (
        label,
        str(len(weights)),
        f"{parameters:,}",
        size(stored),
        f"{stored / total:.1%}" if total else "-",
        size(2 * parameters),
        compression(weights),
        f"{8 * stored / parameters:.2f}" if parameters else "-",
    )


def _weight(
    name: str, parts: dict[str, StoredTensor], named: Scheme | None, shape: Shape | None
) -> Weight:
    stored = sum(part.bytes for part in parts.values())
    if not any(part in parts for part in _PARTS):
        tensor = next(iter(parts.values()))
        return Weight(name, group_of(name), f"q0{tensor.dtype}", prod(tensor.shape), stored)
    if "q_weight" not in parts or "q_scale" not in parts:
        raise ShapeMismatch(
            f"the weight {one_line(name)[:200]} has {', '.join(parts)}, but a packed weight has "
            "q_weight and q_scale"
        )
    if named is None or not named.is_mlc:
        parameters = prod(shape) if shape is not None else 0
        return Weight(name, group_of(name), named.name if named else "packed", parameters, stored)
    scales = prod(parts["q_scale"].shape)
    group = _group_size(named, prod(parts["q_weight"].shape), scales, name)
    label = named.name if group == named.group else f"{named.name}, groups of {group}"
    return Weight(
        name, group_of(name), label, scales * group if shape is None else prod(shape), stored
    )


def _group_size(named: Scheme, words: int, scales: int, name: str) -> int:
    """Weights that share a scale: the scheme's own number, or what the sizes say (MLC's)."""
    packings: tuple[Packing, ...] = ("word", "stream")
    each, rest = divmod(words, scales) if scales else (0, 1)
    if named.is_quantized and not rest and each:
        if each == named.words_per_unit:
            return named.group
        for packing in packings:
            variant = replace(named, packing=packing, group=0)
            if each % variant.words_per_period == 0:
                return each // variant.words_per_period * variant.codes_per_period
    raise ShapeMismatch(
        f"the weight {one_line(name)[:200]} has {words} words of codes and {scales} scales, which "
        f"is not {named.name}; the weights belong to another model"
    )
