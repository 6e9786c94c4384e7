"""Give a model packed weights: what `quantize` means to a tree of modules.

Every Parameter that its scheme packs is replaced by a PackedWeight that reads as an operator which
unpacks it. The layers that hold it do not notice. Where a Recipe gives layers of one kind
different schemes, the kind is split, so that what is traced once is stored alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

from sterna.ir.graph import Attr
from sterna.nn.module import Layers, Module, Parameter
from sterna.nn.trace import Tensor, Trace
from sterna.quantize.pack import packed_spec
from sterna.quantize.recipe import Quantization
from sterna.quantize.scheme import Scheme

Choose = Callable[[str, Parameter], Scheme]


class PackedWeight(Module):
    """The parts of one [N, K] weight, under the weight's own path."""

    transparent = True

    def __init__(self, shape: tuple[int, ...], kind: str, scheme: Scheme) -> None:
        self.shape = shape
        self.kind = kind
        self.scheme = scheme
        for name, (part, dtype) in packed_spec(shape, scheme).items():
            setattr(self, name, Parameter(part, dtype, kind))

    @property
    def grid(self) -> dict[str, Attr]:
        """How codes lie, as the operators that unpack them are told."""
        s = self.scheme
        return {
            "bits": s.bits,
            "group": s.group,
            "bias": s.bias,
            "layout": s.layout,
            "packing": s.packing,
            "rows": self.shape[0],
            "depth": self.shape[1],
        }

    def read(self, trace: Trace) -> Tensor:
        """The f32 matrix [N, K], by the operator that unpacks it."""
        parts = [(n, c) for n, c in self.children() if isinstance(c, Parameter)]
        tensors = [child.read(trace) for _, child in parts]
        s, grid = self.scheme, self.grid
        if s.is_plain_grid:
            return trace.emit("dequantize", *tensors, **grid)
        return trace.emit(
            "restore",
            *tensors,
            **grid,
            parts=" ".join(name for name, _ in parts),
            outer=s.outer,
            levels=" ".join(repr(level) for level in s.levels),
            exponent=s.exponent,
            unit=s.float_unit if s.exponent else 1.0,
        )


def apply(model: Module, quantization: Quantization) -> None:
    """Replace, in place, every weight below `model` that its scheme packs, or stores otherwise."""
    renamed: Callable[[str], str] = getattr(model, "renamed", str)

    def choose(path: str, parameter: Parameter) -> Scheme:
        return quantization.for_weight(renamed(path), parameter.kind)  # type: ignore[arg-type]

    _apply(model, "", choose)


def _apply(module: Module, prefix: str, choose: Choose) -> None:
    for name, child in list(module.children()):
        path = f"{prefix}{name}"
        if isinstance(child, Layers):
            _apply_layers(child, f"{path}.", choose)
        elif isinstance(child, Module):
            _apply(child, prefix if child.transparent else f"{path}.", choose)
        else:
            own = choose(path, child)
            if own.is_quantized:
                setattr(module, name, PackedWeight(child.shape, child.kind, own))
            elif own.compute != child.dtype:
                setattr(module, name, Parameter(child.shape, own.compute, child.kind))


def _apply_layers(layers: Layers[Module], prefix: str, choose: Choose) -> None:
    """One kind for each set of layers that were of one kind and have the same schemes."""
    found: dict[tuple[int, tuple[Scheme, ...]], int] = {}
    first: list[int] = []
    order: list[int] = []
    for i, kind in enumerate(layers.order):
        schemes = tuple(_schemes(layers.kinds[kind], f"{prefix}{i}.", choose))
        if (kind, schemes) not in found:
            found[kind, schemes] = len(first)
            first.append(i)
        order.append(found[kind, schemes])
    kinds = [deepcopy(layers.kinds[layers.order[i]]) for i in first]
    for i, layer in zip(first, kinds, strict=True):
        _apply(layer, f"{prefix}{i}.", choose)
    layers.kinds, layers.order = tuple(kinds), tuple(order)


def _schemes(layer: Module, prefix: str, choose: Choose) -> Iterator[Scheme]:
    for path, parameter in layer.parameters(prefix):
        yield choose(path, parameter)
