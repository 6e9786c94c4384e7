"""Give a model packed weights: what `quantize` means to a tree of modules.

Every Parameter whose kind the scheme packs is replaced by a PackedWeight that reads as the
dequantize operator. The layers that hold it do not notice.
"""

from __future__ import annotations

from sterna.nn.module import Module, Parameter
from sterna.nn.trace import Tensor, Trace
from sterna.quantize.pack import packed_spec
from sterna.quantize.scheme import Scheme


class PackedWeight(Module):
    """Codes, scales and zero points of one [N, K] weight, under the weight's own path."""

    transparent = True

    def __init__(self, shape: tuple[int, ...], kind: str, scheme: Scheme) -> None:
        self.shape = shape
        self.kind = kind
        self.scheme = scheme
        for name, (part, dtype) in packed_spec(shape, scheme).items():
            setattr(self, name, Parameter(part, dtype, kind))

    def read(self, trace: Trace) -> Tensor:
        """The f32 matrix [N, K], by the dequantize operator."""
        parts = [child.read(trace) for _, child in self.children() if isinstance(child, Parameter)]
        s = self.scheme
        return trace.emit(
            "dequantize",
            *parts,
            bits=s.bits,
            group=s.group,
            bias=s.bias,
            layout=s.layout,
            packing=s.packing,
            rows=self.shape[0],
            depth=self.shape[1],
        )


def apply(model: Module, scheme: Scheme) -> None:
    """Replace, in place, every weight below `model` that the scheme packs."""
    for name, child in list(model.children()):
        if isinstance(child, Module):
            apply(child, scheme)
        elif scheme.quantizes(child.kind):  # type: ignore[arg-type]
            own = scheme.for_kind(child.kind)  # type: ignore[arg-type]
            setattr(model, name, PackedWeight(child.shape, child.kind, own))
