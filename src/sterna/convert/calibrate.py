"""Quantization that looks at what layers compute: error correction, and bits where they matter.

In: a plan and documents. Out: the parts of each corrected weight; or how much each weight's error
would matter in each scheme, and the recipe that a budget of bits allows. The model is computed
once, in numpy; every product sees the inputs that the weights quantized before it give, so later
layers make up for earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna import models
from sterna.base.errors import UsageError
from sterna.convert.forward import Documents, WeightOf, all_logits
from sterna.convert.source import Source
from sterna.convert.stored import StoredTensor
from sterna.convert.tensors import Plan
from sterna.models.params import StoredWeight
from sterna.quantize.corrected import energy, quantize_corrected
from sterna.quantize.pack import dequantize, packed_spec, quantize
from sterna.quantize.recipe import Recipe
from sterna.quantize.scheme import SCHEMES, Scheme

Array = NDArray[Any]
Parts = dict[str, Array]
Progress = Callable[[str], None]

CANDIDATES = ("q3f16_1", "q4f16_1", "q8f16_1")  # what a budget chooses from
LINEAR = ("linear", "head")


@dataclass(frozen=True, slots=True)
class _Group:
    """Weights that are stacked, so that they share a scheme: bits and harm of each candidate."""

    names: tuple[str, ...]
    weights: int
    bits: tuple[int, ...]
    harm: tuple[float, ...]


def source_values(tensor: StoredTensor) -> Array:
    """A whole weight as float32."""
    values: Array = tensor.values(0, tensor.shape[0]).astype(np.float32)
    return values


def corrected(
    source: Source, plan: Plan, documents: Documents, progress: Progress
) -> dict[str, Parts]:
    """Packed parts of every linear weight by its checkpoint name, errors corrected.

    Raises UsageError where no weight can be corrected.
    """
    schemes = {
        name: planned.weight.scheme
        for planned in plan.weights
        for name, tensor in zip(planned.weight.sources, planned.tensors, strict=True)
        if tensor.scheme != planned.weight.scheme  # kept as it is
        and planned.weight.kind in LINEAR
        and planned.weight.scheme.is_quantized
        and planned.weight.scheme.is_plain_grid
    }
    if not schemes:
        raise UsageError(
            f"{source.quantization.name} leaves nothing to calibrate; choose a quantized scheme, "
            "such as q4f16_1"
        )
    tensors = sources_of(plan)
    done: dict[str, Parts] = {}
    seen = _LastEnergy()

    def weight_of(name: str, x: Array | None) -> Array:
        values = source_values(tensors[name])
        scheme = schemes.get(name)
        if x is None or scheme is None:
            return values
        if name not in done:
            progress(name)
            done[name] = quantize_corrected(values, seen.of(x), scheme)
        return dequantize(done[name], scheme, values.shape)

    all_logits(
        models.build(source.effective, SCHEMES["q0f32"]), documents, with_experts(plan, weight_of)
    )
    return done


class _LastEnergy:
    """Energy of the inputs at hand: several products share theirs, one after another."""

    def __init__(self) -> None:
        self._x: Array | None = None
        self._energy: NDArray[np.float64] = np.zeros((0, 0))

    def of(self, x: Array) -> NDArray[np.float64]:
        if self._x is not x:
            self._x, self._energy = x, energy(x)
        return self._energy


def sources_of(plan: Plan) -> dict[str, StoredTensor]:
    """The tensors of a plan by their names in the checkpoint."""
    return {
        name: tensor
        for planned in plan.weights
        for name, tensor in zip(planned.weight.sources, planned.tensors, strict=True)
    }


def with_experts(plan: Plan, weight_of: WeightOf) -> WeightOf:
    """`weight_of` the checkpoint's names, for the names of weights that hold all experts too."""
    own = sources_of(plan)
    stacks = {planned.weight.name: planned.weight.sources for planned in plan.weights}

    def found(name: str, x: Array | None) -> Array:
        if name in own:
            return weight_of(name, x)
        return np.concatenate([weight_of(source, None) for source in stacks[name]])

    return found


def within_budget(
    source: Source, plan: Plan, documents: Documents, bits: float, progress: Progress
) -> Recipe:
    """The recipe whose linear weights take at most `bits` a weight and harm outputs least.

    The harm of a weight in a scheme is the squared error of its products over their square, summed
    over the documents. Bits are bought where one takes away most harm. Raises UsageError for a
    budget that the smallest scheme does not keep.
    """
    candidates = [SCHEMES[name] for name in CANDIDATES]
    base = source.quantization
    if not isinstance(base, Scheme) or base.compute != candidates[0].compute:
        raise UsageError(
            f"a budget of bits mixes {', '.join(CANDIDATES)}, but the weights were to be "
            f"{base.name}; give --quantization q4f16_1 or another of those"
        )
    tensors = sources_of(plan)
    linear = [p.weight for p in plan.weights if p.weight.kind in LINEAR]
    wanted = {name for weight in linear for name in weight.sources}
    harm: dict[str, tuple[float, ...]] = {}
    seen = _LastEnergy()

    def weight_of(name: str, x: Array | None) -> Array:
        values = source_values(tensors[name])
        if x is not None and name in wanted and name not in harm:
            progress(name)
            harm[name] = tuple(_harm(values, seen.of(x), scheme) for scheme in candidates)
        return values

    all_logits(
        models.build(source.effective, SCHEMES["q0f32"]), documents, with_experts(plan, weight_of)
    )
    groups = [_group(weight, harm) for weight in linear if set(weight.sources) <= set(harm)]
    chosen = _chosen(groups, bits)
    own = {
        name: candidates[index]
        for group, index in zip(groups, chosen, strict=True)
        for name in group.names
    }
    return Recipe(f"mixed-{bits:g}", base, MappingProxyType(own))


def _harm(weight: Array, inputs: NDArray[np.float64], scheme: Scheme) -> float:
    off = dequantize(quantize(weight, scheme), scheme, weight.shape).astype(np.float64) - weight
    lost = float(np.einsum("nk,nk->", off @ inputs, off))
    wide = weight.astype(np.float64)
    whole = float(np.einsum("nk,nk->", wide @ inputs, wide))
    return lost / whole if whole > 0 else 0.0


def _group(weight: StoredWeight, harm: Mapping[str, tuple[float, ...]]) -> _Group:
    rows = [harm[name] for name in weight.sources]
    bits = tuple(_bits(weight.shape, SCHEMES[name]) for name in CANDIDATES)
    return _Group(
        weight.sources, prod(weight.shape), bits, tuple(map(sum, zip(*rows, strict=True)))
    )


def _bits(shape: tuple[int, ...], scheme: Scheme) -> int:
    """What a weight takes, with what fills up the last group of each row."""
    parts = packed_spec(shape, scheme).values()
    return sum(dtype.bits * prod(part) for part, dtype in parts)


def _chosen(groups: Sequence[_Group], budget: float) -> list[int]:
    """A candidate for each group: from the smallest up, the best step for its bits each time."""
    total = sum(group.weights for group in groups)
    least = sum(group.bits[0] for group in groups)
    if not least <= budget * total < inf:
        raise UsageError(
            f"a budget of {budget:g} bits is not what linear weights of this model can take: the "
            f"smallest scheme takes {least / total:.4g}; give that or more"
        )
    room = budget * total - least
    chosen = [0] * len(groups)
    while True:
        best: tuple[float, int, int] | None = None
        for i, group in enumerate(groups):
            for step in range(chosen[i] + 1, len(group.bits)):
                price = group.bits[step] - group.bits[chosen[i]]
                gain = (group.harm[chosen[i]] - group.harm[step]) / price
                if price <= room and gain > 0 and (best is None or gain > best[0]):
                    best = gain, i, step
        if best is None:
            return chosen
        _, i, step = best
        room -= groups[i].bits[step] - groups[i].bits[chosen[i]]
        chosen[i] = step
