"""A checkpoint's tensors held against the config, all of them, before anything is written.

In: a Source and the tensors of its folder, unread. Out: each stored weight with the tensors it is
made of, and notes on what was passed over knowingly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sterna.base.errors import MissingTensor, ShapeMismatch, UnexpectedTensor
from sterna.convert.source import Source
from sterna.convert.stored import StoredTensor, Tensors, check_float, turned
from sterna.models.params import (
    StoredWeight,
    base_model,
    head_tensors,
    is_ignored,
    plain_name,
    stored_weights,
    tied_head,
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A weight to store and the tensors it is stacked from, in order."""

    weight: StoredWeight
    tensors: tuple[StoredTensor, ...]

    @property
    def source_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a conversion. `notes` are sentences for the user."""

    weights: tuple[Planned, ...]
    notes: tuple[str, ...]


def plan(source: Source, tensors: Tensors) -> Plan:
    """Match a checkpoint with the model that its config describes.

    Raises MissingTensor, UnexpectedTensor, and ShapeMismatch for a shape or an element type that
    does not fit.
    """
    weights = stored_weights(source.effective, source.quantization)
    found, notes = _untied(source, _with_base(source, tensors))
    expected = {
        name: shape
        for weight in weights
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True)
    }
    _check_present(source, expected, found)
    _check_read(source, expected, found)
    for name, shape in expected.items():
        _check_shape(found[name], name, shape)
    matched = (Planned(weight, _parts(weight, found)) for weight in weights)
    return Plan(tuple(matched), (*notes, *_twice(weights, found)))


def _parts(weight: StoredWeight, found: Tensors) -> tuple[StoredTensor, ...]:
    own = (found[name] for name in weight.sources)
    return tuple(turned(t) if weight.transposed and not t.turned else t for t in own)


def _with_base(source: Source, tensors: Tensors) -> Tensors:
    """Names below the base model, as its own class saves them: "wte" for "transformer.wte"."""
    tensors = {plain_name(source.effective, name): t for name, t in tensors.items()}
    base = base_model(source.effective)
    if any(name.startswith(f"{base}.") for name in tensors):
        return tensors
    head = head_tensors(source.effective)
    return {name if name in head else f"{base}.{name}": t for name, t in tensors.items()}


def _twice(weights: list[StoredWeight], found: Tensors) -> tuple[str, ...]:
    """A note where weights that were quantized before are quantized again."""
    again = [
        name
        for weight in weights
        for name in weight.sources
        if found[name].scheme not in (None, weight.scheme)
    ]
    if not again:
        return ()
    return (
        f"{again[0]}{_and_more(again)} was quantized before, so its accuracy is lost twice; "
        "quantization 'stored' keeps it as it is",
    )


def _untied(source: Source, tensors: Tensors) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """A tied pair is one tensor: take it under either name, and the embedding where both are."""
    found = dict(tensors)
    pair = tied_head(source.effective)
    if pair is None or pair[0] not in found:
        return found, ()
    head, embedding = pair
    if embedding not in found:
        found[embedding] = found.pop(head)
        return found, (f"{head} serves as {embedding}: the config ties them",)
    del found[head]
    return found, (f"{head} in the checkpoint is not used: the config ties it to {embedding}",)


def _check_present(
    source: Source, expected: Mapping[str, object], found: Mapping[str, object]
) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        others = _unexpected(source, expected, found)
        instead = f", which holds {others[0][:200]}{_and_more(others)} instead" if others else ""
        raise MissingTensor(
            f"the tensor {missing[0]}{_and_more(missing)}, which config.json calls for, is not "
            f"among the {len(found)} tensors of {source.folder}{instead}; download it again, or "
            "look for an adapter or a config that belongs to another model"
        )


def _check_read(
    source: Source, expected: Mapping[str, object], found: Mapping[str, object]
) -> None:
    unexpected = _unexpected(source, expected, found)
    if unexpected:
        raise UnexpectedTensor(
            f"{source.folder} holds the tensor {unexpected[0][:200]}{_and_more(unexpected)}, which "
            f"a {source.model_type} model with this config.json does not read; the config or the "
            "weights belong to another model"
        )


def _unexpected(
    source: Source, expected: Mapping[str, object], found: Mapping[str, object]
) -> list[str]:
    return [n for n in found if n not in expected and not is_ignored(source.effective, n)]


def _check_shape(tensor: StoredTensor, name: str, shape: tuple[int, ...]) -> None:
    check_float(tensor)
    if tensor.shape != (shape[::-1] if tensor.turned else shape):
        raise ShapeMismatch(
            f"the tensor {name} in {tensor.path} has shape {list(tensor.shape)}, but config.json "
            f"calls for {list(shape)}"
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
