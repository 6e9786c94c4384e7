"""Element-wise operators: one scalar function each, with numpy's broadcasting from the right."""

from __future__ import annotations

from collections.abc import Callable

from sterna.base.dtype import F32, dtype
from sterna.ir.compute import Compute
from sterna.ir.expr import Buffer, Const, Expr, binary, cast, exp, wrap
from sterna.ir.graph import TensorType
from sterna.ops.op import Attrs, Kind, Op, define, expect, same_dim

_AXES = "abcdefgh"


def _broadcast(name: str, types: tuple[TensorType, ...]) -> tuple[Expr, ...]:
    rank = max(len(t.shape) for t in types)
    shape: list[Expr] = []
    for i in range(-rank, 0):
        dims = [t.shape[i] for t in types if len(t.shape) >= -i]
        wide = [d for d in dims if not (isinstance(d, Const) and d.value == 1)]
        expect(all(same_dim(wide[0], d) for d in wide[1:]), f"{name}: shapes do not broadcast")
        shape.append(wide[0] if wide else dims[0])
    return tuple(shape)


def _read(buffer: Buffer, index: tuple[Expr, ...]) -> Expr:
    own = index[len(index) - len(buffer.shape) :]
    zero = wrap(0)
    return buffer[
        tuple(
            zero if isinstance(d, Const) and d.value == 1 else i
            for d, i in zip(buffer.shape, own, strict=True)
        )
    ]


def elementwise(name: str, function: Callable[..., Expr]) -> Op:
    """function(*elements, **attrs) at each index."""

    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        expect(all(t.dtype == types[0].dtype for t in types), f"{name}: dtypes differ")
        return (TensorType(_broadcast(name, types), types[0].dtype),)

    def compute(
        out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
    ) -> tuple[Compute, ...]:
        names = " ".join(_AXES[: len(types[0].shape)])
        return (
            define(
                out, types[0], names, lambda *i: function(*(_read(a, i) for a in args), **attrs)
            ),
        )

    return Op(name, Kind.ELEMENTWISE, infer, compute)


def _infer_cast(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(types[0].shape, dtype(str(attrs["dtype"]))),)


def _compute_cast(
    out: str, args: tuple[Buffer, ...], types: tuple[TensorType, ...], attrs: Attrs
) -> tuple[Compute, ...]:
    names = " ".join(_AXES[: len(types[0].shape)])
    return (define(out, types[0], names, lambda *i: cast(types[0].dtype, args[0][i])),)


def _silu(x: Expr) -> Expr:
    """x * sigmoid(x), in f32."""
    wide = cast(F32, x)
    return cast(x.dtype, wide / (wrap(1.0) + exp(-wide)))


ADD = elementwise("add", lambda a, b: a + b)
MULTIPLY = elementwise("multiply", lambda a, b: a * b)
MAXIMUM = elementwise("maximum", lambda a, b: binary("max", a, b))
SHIFT = elementwise("shift", lambda x, by: x + by)
SILU = elementwise("silu", _silu)
CAST = Op("cast", Kind.ELEMENTWISE, _infer_cast, _compute_cast)
