"""Products in floats of 16 bits: for the matrix unit, whatever the number of rows.

In: a module whose weights are read by dequantize or as they are. Out: one where matmuls that can
be `unit_matmul` are. Runs where that was asked for, for targets with a unit for such operands. It
knows which weights suit; the arithmetic itself is `ops.unit_matmul`.
"""

from __future__ import annotations

from dataclasses import replace

from sterna.base.dtype import DType
from sterna.ir.expr import const_value
from sterna.ir.graph import Binding, Call, Function, IRModule, Value, call
from sterna.ops.op import integer
from sterna.ops.unit_matmul import block_of
from sterna.passes.def_use import makers
from sterna.passes.quantize_activations import unpacked

_CODE_BITS = 8  # of a weight, at most: its codes are exact in 16-bit floats


def unit_products(module: IRModule, operands: DType) -> IRModule:
    """Replace matmul by unit_matmul, where its weight is packed codes or has the operands' dtype.

    Weights whose groups do not divide the depth, or have no blocks of a multiple of 16, stay as
    they are. The dequantize is left for `cleanup` to drop.

    Before:
        n = dim(1, 64)

        @function
        def f(x: f32[n, 64]):
            code = weight('o.q_weight', u32[32, 8])
            scale = weight('o.q_scale', f16[32, 2])
            head = weight('head.weight', f16[96, 32])
            w: f32[32, 64] = dequantize(code, scale, bias=7, bits=4, depth=64,
                                        group=32, layout='NK', packing='word', rows=32)
            y: f32[n, 32] = matmul(x, w)
            z: f32[n, 96] = matmul(y, head)
            return z

        entry('f')
    After:
        n = dim(1, 64)

        @function
        def f(x: f32[n, 64]):
            code = weight('o.q_weight', u32[32, 8])
            scale = weight('o.q_scale', f16[32, 2])
            head = weight('head.weight', f16[96, 32])
            w: f32[32, 64] = dequantize(code, scale, bias=7, bits=4, depth=64,
                                        group=32, layout='NK', packing='word', rows=32)
            y: f32[n, 32] = unit_matmul(x, code, scale, bias=7, bits=4, depth=64, group=32,
                                        layout='NK', operands='f16', packing='word', rows=32)
            z: f32[n, 96] = unit_matmul(y, head, layout='NK', operands='f16')
            return z

        entry('f')
    """
    functions = {n: _rewritten(f, operands) for n, f in module.functions.items()}
    return replace(module, functions=functions)


def _rewritten(function: Function, operands: DType) -> Function:
    made = makers(function)
    bindings = tuple(
        binding if (new := _by_unit(function, made, binding.call, operands)) is None
        else replace(binding, call=new) for binding in function.bindings
    )  # fmt: skip
    return replace(function, bindings=bindings)


def _by_unit(
    function: Function, made: dict[Value, Binding], product: Call, operands: DType
) -> Call | None:
    """The call that replaces a matmul; None where it stays."""
    if product.op != "matmul":
        return None
    x, weight = product.args
    if weight in function.weights:
        depth = int(const_value(weight.shape[1]) or 0)
        if weight.dtype != operands or not depth or block_of(depth) is None:
            return None
        return call("unit_matmul", x, weight, layout="NK", operands=operands.name)
    codes = unpacked(made, product)
    if codes is None:
        return None
    attrs = dict(codes.attrs)
    group, bits = integer(attrs, "group"), integer(attrs, "bits")
    whole = integer(attrs, "depth") % group == 0 and bits <= _CODE_BITS
    if not whole or block_of(group) is None:
        return None
    return call("unit_matmul", x, *codes.args, **attrs, operands=operands.name)
