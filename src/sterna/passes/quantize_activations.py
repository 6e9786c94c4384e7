"""Products with packed weights in integers: the other factor is quantized at run time.

In: a module whose packed weights are read by dequantize. Out: one where matmuls that can be read
codes instead, from activations of 16 bits that share a scale over the weight's own groups (an
error near 2e-5 of a result), or of 8 where that was asked for (near 5e-3). Runs only for targets
that multiply pairs of 16-bit numbers. It knows when the arithmetic fits; the arithmetic itself is
`ops.quantized_matmul`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from sterna.ir.graph import Binding, Call, Function, IRModule, Value, call
from sterna.ops import op
from sterna.ops.op import Attrs, integer
from sterna.ops.quantize import code_span
from sterna.ops.quantized_matmul import PARTS
from sterna.passes.def_use import makers

_SUM_BITS = 31  # of a group's exact sum


def quantize_activations(module: IRModule, bits: int = 16) -> IRModule:
    """Replace matmul(x, dequantize(codes, ...)) by a product of codes, those of x of `bits` bits.

    Weights whose groups do not divide the depth, or could overflow a sum, stay as they are. So do
    those whose codes of 8 bits or across words do not suit activations of 8: they get 16. The
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
                dynamic_quantize(x, group=32, parts=2, span=8), i32[n, 8, 4], f32[n, 2], i32[n, 2])
            y: f32[n, 32] = quantized_matmul(
                x_codes, x_scales, x_sums, code, scale, bias=7, bits=4, depth=64,
                group=32, layout='NK', packing='word', parts=2, rows=32)
            return y

        entry('f')
    """
    functions = {n: _rewritten(f, bits) for n, f in module.functions.items()}
    return replace(module, functions=functions)


def code_bits(module: IRModule) -> Counter[int]:
    """How many products read activations of how many bits."""
    products = [
        b.call for f in module.functions.values() for b in f.bindings
        if b.call.op == "quantized_matmul"
    ]  # fmt: skip
    return Counter(32 // integer(dict(call.attrs), "parts") for call in products)


def _rewritten(function: Function, bits: int) -> Function:
    made = makers(function)
    codes: dict[tuple[Value, int, int, int], tuple[Value, ...]] = {}
    bindings: list[Binding] = []
    for binding in function.bindings:
        weight = _packed(made, binding.call)
        if weight is None:
            bindings.append(binding)
            continue
        x, attrs = binding.call.args[0], dict(weight.attrs)
        parts = PARTS[bits if _fits(attrs, bits) else 16]
        key = (x, integer(attrs, "group"), code_span(attrs, parts), parts)
        if key not in codes:
            quantized = _quantized(*key)
            codes[key] = quantized.outs
            bindings.append(quantized)
        product = call("quantized_matmul", *codes[key], *weight.args, **attrs, parts=parts)
        bindings.append(replace(binding, call=product))
    return replace(function, bindings=tuple(bindings))


def unpacked(made: dict[Value, Binding], product: Call) -> Call | None:
    """The dequantize that a matmul's weight comes from."""
    if product.op != "matmul" or product.args[1] not in made:
        return None
    weight = made[product.args[1]].call
    return weight if weight.op == "dequantize" else None


def _packed(made: dict[Value, Binding], product: Call) -> Call | None:
    """The same, where its codes can be multiplied."""
    weight = unpacked(made, product)
    return weight if weight is not None and suits(dict(weight.attrs), 16) else None


def suits(attrs: Attrs, bits: int) -> bool:
    """Whether activations of `bits` bits can be multiplied with a weight that lies so."""
    return integer(attrs, "depth") % integer(attrs, "group") == 0 and _fits(attrs, bits)


def _fits(attrs: Attrs, bits: int) -> bool:
    group, code, parts = integer(attrs, "group"), integer(attrs, "bits"), PARTS[bits]
    span = code_span(attrs, parts)
    exact = bits - 1 + code + group.bit_length() <= _SUM_BITS + 1
    aligned = bits == 16 or (attrs["packing"] == "word" and span * code == 32 and code < 8)
    return exact and aligned and group % span == 0 and span % parts == 0


def _quantized(x: Value, group: int, span: int, parts: int) -> Binding:
    made = call("dynamic_quantize", x, group=group, parts=parts, span=span)
    types = op(made.op).infer((x.type,), dict(made.attrs))
    names = (f"{x.name}_{part}" for part in ("codes", "scales", "sums"))
    return Binding(tuple(Value(n, t) for n, t in zip(names, types, strict=True)), made)
