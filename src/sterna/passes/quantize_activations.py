"""Products with packed weights in integers: the other factor is quantized at run time.

In: a module whose packed weights are read by dequantize. Out: one where matmuls that can be read
codes instead, from activations of 16 bits that share a scale over the weight's own groups (an
error near 2e-5 of a result). Runs only for targets that multiply pairs of 16-bit numbers. It knows
when the arithmetic fits; the arithmetic itself is `ops.quantized_matmul`.
"""

from __future__ import annotations

from dataclasses import replace

from sterna.ir.graph import Binding, Call, Function, IRModule, Value, call
from sterna.ops import op
from sterna.ops.op import integer
from sterna.ops.quantize import pair_span
from sterna.passes.def_use import makers

_SUM_BITS = 31  # of a group's exact sum


def quantize_activations(module: IRModule) -> IRModule:
    """Replace matmul(x, dequantize(codes, ...)) by a product of codes.

    Weights whose groups do not divide the depth, or could overflow a sum, stay as they are. The
    dequantize is left for `cleanup` to drop.

    Before:
        n = dim(1, 64)

        @function
        def f(x: f32[n, 64]):
            code = weight('o.q_weight', u32[32, 8])
            scale = weight('o.q_scale', f16[32, 2])
            w: f32[32, 64] = dequantize(code, scale, bias=7, bits=4, depth=64,
                                        group=32, layout='NK', packing='word', rows=32)
            y: f32[n, 32] = matmul(x, w)
            return y

        entry('f')
    After:
        n = dim(1, 64)

        @function
        def f(x: f32[n, 64]):
            code = weight('o.q_weight', u32[32, 8])
            scale = weight('o.q_scale', f16[32, 2])
            w: f32[32, 64] = dequantize(code, scale, bias=7, bits=4, depth=64,
                                        group=32, layout='NK', packing='word', rows=32)
            x_codes, x_scales, x_sums = outs(
                dynamic_quantize(x, group=32, span=8), i32[n, 8, 4], f32[n, 2], i32[n, 2])
            y: f32[n, 32] = quantized_matmul(
                x_codes, x_scales, x_sums, code, scale, bias=7, bits=4, depth=64,
                group=32, layout='NK', packing='word', rows=32)
            return y

        entry('f')
    """
    return replace(module, functions={n: _rewritten(f) for n, f in module.functions.items()})


def _rewritten(function: Function) -> Function:
    made = makers(function)
    codes: dict[tuple[Value, int, int], tuple[Value, ...]] = {}
    bindings: list[Binding] = []
    for binding in function.bindings:
        weight = _packed(made, binding.call)
        if weight is None:
            bindings.append(binding)
            continue
        x, attrs = binding.call.args[0], dict(weight.attrs)
        group, span = integer(attrs, "group"), pair_span(attrs)
        if (x, group, span) not in codes:
            quantized = _quantized(x, group, span)
            codes[x, group, span] = quantized.outs
            bindings.append(quantized)
        args = (*codes[x, group, span], *weight.args)
        bindings.append(replace(binding, call=Call("quantized_matmul", args, weight.attrs)))
    return replace(function, bindings=tuple(bindings))


def _packed(made: dict[Value, Binding], product: Call) -> Call | None:
    """The dequantize that a matmul's weight comes from, where its codes can be multiplied."""
    if product.op != "matmul" or product.args[1] not in made:
        return None
    weight = made[product.args[1]].call
    if weight.op != "dequantize":
        return None
    attrs = dict(weight.attrs)
    group, span, depth = integer(attrs, "group"), pair_span(attrs), integer(attrs, "depth")
    fits = 15 + integer(attrs, "bits") + group.bit_length() <= _SUM_BITS + 1
    even = depth % group == 0 and group % span == 0 and span % 2 == 0
    return weight if fits and even else None


def _quantized(x: Value, group: int, span: int) -> Binding:
    made = call("dynamic_quantize", x, group=group, span=span)
    types = op(made.op).infer((x.type,), dict(made.attrs))
    names = (f"{x.name}_{part}" for part in ("codes", "scales", "sums"))
    return Binding(tuple(Value(n, t) for n, t in zip(names, types, strict=True)), made)
