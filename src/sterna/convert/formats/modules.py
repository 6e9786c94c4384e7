"""Tensors of a checkpoint by the module they belong to, and what formats check of them.

In: references by name, and the last components that a format gives its parts. Out: the modules
that have such parts, and the other tensors as plain ones. It knows no format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import MissingTensor, ShapeMismatch, UnsafeFile, UnsupportedModel
from sterna.checkpoint.tensor import TensorRef
from sterna.convert.stored import StoredTensor, plain

Array = NDArray[Any]
Refs = Mapping[str, TensorRef]


@dataclass(frozen=True, slots=True)
class PackedModule:
    """A module's parts by their last component, such as "qweight"."""

    path: str
    parts: Mapping[str, TensorRef]

    @property
    def weight(self) -> str:
        """The weight's name in a checkpoint that is not quantized."""
        return f"{self.path}.weight"

    def part(self, leaf: str) -> TensorRef:
        """A part that must be there."""
        if leaf not in self.parts:
            raise MissingTensor(
                f"{self.path} has {', '.join(self.parts)}, but no {leaf}; download the model again"
            )
        return self.parts[leaf]

    def refs(self) -> tuple[TensorRef, ...]:
        return tuple(self.parts.values())

    def expect(self, leaf: str, shape: tuple[int, ...]) -> TensorRef:
        """A part that must have this shape."""
        ref = self.part(leaf)
        if ref.shape != shape:
            raise ShapeMismatch(
                f"{ref.name} in {ref.path} has the shape {list(ref.shape)}, but its module's other "
                f"parts call for {list(shape)}"
            )
        return ref


def modules(
    refs: Refs, leaves: Collection[str], marks: Collection[str]
) -> tuple[list[PackedModule], dict[str, StoredTensor]]:
    """Modules that have a part named in `marks`, and all tensors that belong to none.

    `leaves` are the names of all parts; a tensor may have one of them and be plain elsewhere.
    """
    found: dict[str, dict[str, TensorRef]] = {}
    for name, ref in refs.items():
        stem, leaf = _split(name, leaves)
        if leaf:
            found.setdefault(stem, {})[leaf] = ref
    packed = {stem: parts for stem, parts in found.items() if any(mark in parts for mark in marks)}
    taken = {ref.name for parts in packed.values() for ref in parts.values()}
    others = {name: plain(ref) for name, ref in refs.items() if name not in taken}
    return [PackedModule(stem, parts) for stem, parts in packed.items()], others


def without_cache_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Without the scales for a key-value cache of 8 bits, which has its own here, or 16 bits."""
    return {name: t for name, t in tensors.items() if not name.endswith((".k_scale", ".v_scale"))}


def _split(name: str, leaves: Collection[str]) -> tuple[str, str]:
    """(module, part); a part may have dots, as in "weight.absmax"."""
    for leaf in sorted(leaves, key=len, reverse=True):
        if name.endswith(f".{leaf}"):
            return name[: -len(leaf) - 1], leaf
    return name, ""


def number(section: Mapping[str, Any], key: str, default: int | None, source: str) -> int:
    """An integer of a configuration."""
    value = section.get(key, default)
    if type(value) is not int:
        raise UnsafeFile(f"{source} needs {key} as a whole number, found {value!r:.60}")
    return value


def refuse(source: str, what: str, possible: str) -> UnsupportedModel:
    """The error for a variation that is not read."""
    return UnsupportedModel(f"{source} says {what}, which Sterna does not read; {possible}")


def groups_of(depth: int, group: int, source: str) -> int:
    """Number of groups in a row, which they must fill."""
    if group <= 0 or depth % group:
        raise ShapeMismatch(f"{source}: groups of {group} do not fill rows of {depth} weights")
    return depth // group


def finite(values: Array, name: str) -> Array:
    """Scales as they are, unless some are NaN or infinite."""
    if not np.isfinite(values).all():
        raise UnsafeFile(
            f"{name} holds NaN or infinite scales, so the model would only produce noise; get the "
            "checkpoint again or ask its author"
        )
    return values


def of_rows(scale: Array, depth: int, group: int) -> Array:
    """One scale a row [N, 1] repeated for every group of it."""
    return np.ascontiguousarray(np.repeat(scale, -(-depth // group), axis=1))
