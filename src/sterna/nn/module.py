"""Modules: trees of parameters whose attribute names are the checkpoint's names.

A Parameter knows its shape and what kind of layer it belongs to, so that quantization and
loading need no code in the model. Each kind of layer in a `Layers` list is traced once, and `runs`
finds the pattern in which the kinds follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sterna.base.dtype import DType
from sterna.nn.trace import Tensor, Trace


@dataclass(slots=True, eq=False)
class Parameter:
    """A weight of `shape` stored as `dtype`.

    `kind` is "linear", "experts", "router", "low_rank" for small matrices that make gates,
    "embedding", "head", "norm", "bias", "vision" for matrices that look at images, or "exact" for
    what is float32 in every scheme; `stack` is the number of matrices that checkpoints hold for it,
    one for each expert; `path` its full name, with "{i}" for the layer index, set when the model is
    complete.
    """

    shape: tuple[int, ...]
    dtype: DType
    kind: str
    path: str = ""
    stack: int = 1

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

    def named(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(path, parameter) below, each kind of layer once with "{i}" for its index."""
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.named(_below(prefix, name, child))
            else:
                yield f"{prefix}{name}", child

    def name_parameters(self, prefix: str = "") -> None:
        """Give every Parameter its path; called once, on the root."""
        for path, parameter in self.named(prefix):
            parameter.path = path


def _below(prefix: str, name: str, child: Module) -> str:
    return prefix if child.transparent else f"{prefix}{name}."


Layer = TypeVar("Layer", bound=Module)


class Layers(Module, Generic[Layer]):
    """Layers of a few kinds, each kind held once: its weights' paths say "{i}".

    Layer i is of `kinds[order[i]]`.
    """

    def __init__(self, kinds: Sequence[Layer], order: Sequence[int]) -> None:
        self.kinds = tuple(kinds)
        self.order = tuple(order)

    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        for kind in self.kinds:
            yield "{i}", kind

    def parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        for i, kind in enumerate(self.order):
            yield from self.kinds[kind].parameters(f"{prefix}{i}.")


@dataclass(frozen=True, slots=True)
class Run:
    """`count` times the layers of kinds `body`, from layer `first` on."""

    first: int
    body: tuple[int, ...]
    count: int

    @property
    def end(self) -> int:
        return self.first + len(self.body) * self.count


LONGEST_BODY = 16


def runs(order: Sequence[int]) -> list[Run]:
    """The layers in order as few bodies, each repeated: what a launch program spells out.

    The bodies' lengths together are the least possible, among repeats that go on as long as their
    pattern does, and of equals the first run is the longest. [s s f s s f s] is (s s f) twice and
    (s) once.
    """
    count = len(order)
    least = [0] * (count + 1)  # of layers that the bodies from i on spell out, and of bodies
    best: list[Run | None] = [None] * count
    alike = [[0] * (count + 1) for _ in range(LONGEST_BODY + 1)]
    for i in reversed(range(count)):
        options = []
        for period in range(1, min(LONGEST_BODY, count - i) + 1):
            equal = i + period < count and order[i] == order[i + period]
            alike[period][i] = alike[period][i + 1] + 1 if equal else 0
            repeats = 1 + alike[period][i] // period
            cost = period * (count + 1) + 1 + least[i + period * repeats]
            options.append((cost, Run(i, tuple(order[i : i + period]), repeats)))
        least[i], best[i] = min(options, key=lambda option: (option[0], -option[1].end))
    found: list[Run] = []
    at = 0
    while at < count:
        run = best[at]
        assert run is not None, "every layer begins some run"
        found.append(run)
        at = run.end
    return found
