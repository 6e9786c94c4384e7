"""Modules: trees of parameters whose attribute names are the checkpoint's names.

A Parameter knows its shape and what kind of layer it belongs to, so that quantization and
loading need no code in the model. Equal layers in a `Layers` list are traced once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from sterna.base.dtype import DType
from sterna.nn.trace import Tensor, Trace


@dataclass(slots=True, eq=False)
class Parameter:
    """A weight of `shape` stored as `dtype`.

    `kind` is "linear", "embedding", "head", "norm" or "bias"; `path` its full name, with "{i}"
    for the layer index, set when the model is complete.
    """

    shape: tuple[int, ...]
    dtype: DType
    kind: str
    path: str = ""

    def read(self, trace: Trace) -> Tensor:
        return trace.weight(self.path, self.shape, self.dtype)


class Module:
    """A node of the tree; attributes that are Modules or Parameters are its children.

    A `transparent` child adds no component of its own to the paths below it.
    """

    transparent = False

    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        """(attribute, child) in the order of definition."""
        for name, value in vars(self).items():
            if isinstance(value, Module | Parameter):
                yield name, value

    def parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) below, each layer of a `Layers` list spelled out."""
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.parameters(_below(prefix, name, child))
            else:
                yield f"{prefix}{name}", child

    def name_parameters(self, prefix: str = "") -> None:
        """Give every Parameter its path; called once, on the root."""
        for name, child in self.children():
            if isinstance(child, Module):
                child.name_parameters(_below(prefix, name, child))
            else:
                child.path = f"{prefix}{name}"


def _below(prefix: str, name: str, child: Module) -> str:
    return prefix if child.transparent else f"{prefix}{name}."


Layer = TypeVar("Layer", bound=Module)


class Layers(Module, Generic[Layer]):
    """`count` equal layers, held as one: their weights' paths say "{i}"."""

    def __init__(self, layer: Layer, count: int) -> None:
        self.layer = layer
        self.count = count

    def parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for i in range(self.count):
            yield from self.layer.parameters(f"{prefix}{i}.")

    def name_parameters(self, prefix: str = "") -> None:
        self.layer.name_parameters(f"{prefix}{{i}}.")
