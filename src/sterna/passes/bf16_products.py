"""Products in pairs of bf16: for CPUs that multiply and add these, whatever the number of rows.

In: a module whose weights are read by dequantize or as they are. Out: one where matmuls that can
be `bf16_matmul` are. Runs where that was asked for, for targets with such an instruction. It knows
which weights suit; the arithmetic itself is `ops.bf16_matmul`.
"""

from __future__ import annotations

from dataclasses import replace

from sterna.base.dtype import BF16
from sterna.ir.expr import const_value
from sterna.ir.graph import Binding, Call, Function, IRModule, Value, call
from sterna.ops import op
from sterna.ops.op import Attrs, integer
from sterna.ops.quantize import code_span
from sterna.passes.def_use import makers
from sterna.passes.quantize_activations import unpacked

_CODE_BITS = 8  # of a weight, at most: its codes are exact in bf16


def bf16_products(module: IRModule) -> IRModule:
    """Replace matmul by bf16_matmul, where its weight is packed codes or bf16.

    Weights whose groups do not divide the depth, or have no whole pairs, stay as they are. The
    dequantize is left for `cleanup` to drop.

    Before:
        n = dim(1, 64)

        @function
        def f(x: f32[n, 64]):
            code = weight('o.q_weight', u32[32, 8])
            scale = weight('o.q_scale', f16[32, 2])
            head = weight('head.weight', bf16[96, 32])
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
            head = weight('head.weight', bf16[96, 32])
            w: f32[32, 64] = dequantize(code, scale, bias=7, bits=4, depth=64,
                                        group=32, layout='NK', packing='word', rows=32)
            x_pairs: i32[n, 8, 4] = bf16_pairs(x, span=8)
            y: f32[n, 32] = bf16_matmul(x_pairs, code, scale, bias=7, bits=4, depth=64,
                                        group=32, layout='NK', packing='word', rows=32)
            y_pairs: i32[n, 16, 1] = bf16_pairs(y, span=2)
            z: f32[n, 96] = bf16_matmul(y_pairs, head, layout='NK')
            return z

        entry('f')
    """
    functions = {n: _rewritten(f) for n, f in module.functions.items()}
    return replace(module, functions=functions)


def _rewritten(function: Function) -> Function:
    made = makers(function)
    pairs: dict[tuple[Value, int], Value] = {}
    bindings: list[Binding] = []
    for binding in function.bindings:
        found = _suiting(function, made, binding.call)
        if found is None:
            bindings.append(binding)
            continue
        span, weights, attrs = found
        key = (binding.call.args[0], span)
        if key not in pairs:
            both = _paired(*key)
            bindings.append(both)
            (pairs[key],) = both.outs
        product = call("bf16_matmul", pairs[key], *weights, **attrs)
        bindings.append(replace(binding, call=product))
    return replace(function, bindings=tuple(bindings))


def _suiting(
    function: Function, made: dict[Value, Binding], product: Call
) -> tuple[int, tuple[Value, ...], Attrs] | None:
    """(span of pairs, arguments of the weight, attributes) of a matmul that can be replaced."""
    if product.op != "matmul":
        return None
    weight = product.args[1]
    if weight in function.weights:
        depth = int(const_value(weight.shape[1]) or 0)
        fits = weight.dtype == BF16 and depth > 0 and depth % 2 == 0
        return (2, (weight,), {"layout": "NK"}) if fits else None
    codes = unpacked(made, product)
    if codes is None:
        return None
    attrs = dict(codes.attrs)
    group, span = integer(attrs, "group"), code_span(attrs, 2)
    whole = integer(attrs, "depth") % group == 0 and group % span == 0 and span % 2 == 0
    if not whole or integer(attrs, "bits") > _CODE_BITS:
        return None
    return span, codes.args, attrs


def _paired(x: Value, span: int) -> Binding:
    made = call("bf16_pairs", x, span=span)
    (kind,) = op(made.op).infer((x.type,), dict(made.attrs))
    return Binding((Value(f"{x.name}_pairs", kind),), made)
