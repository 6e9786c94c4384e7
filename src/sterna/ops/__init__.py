"""Operators: one record each, and the table of all of them."""

from sterna.base.errors import InvalidIR
from sterna.ops import (
    activation,
    attention,
    bf16_matmul,
    elementwise,
    experts,
    heads,
    latent,
    layer_norm,
    low_rank,
    matmul,
    norm,
    quantize,
    quantized_matmul,
    recurrence,
    restore,
    routing,
    shape,
    unit_matmul,
)
from sterna.ops.op import Kind, Op

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        elementwise.ADD,
        elementwise.MULTIPLY,
        elementwise.MAXIMUM,
        elementwise.SHIFT,
        elementwise.SILU,
        elementwise.CAST,
        activation.GELU,
        activation.GELU_TANH,
        activation.GELU_QUICK,
        activation.RELU,
        activation.RELU_SQUARED,
        activation.TANH,
        activation.EXP,
        activation.SIGMOID,
        activation.DECAY,
        activation.SOFTCAP,
        activation.SCALE,
        activation.CLIP,
        activation.CLAMPED_SWIGLU,
        shape.ROW,
        shape.FLATTEN,
        shape.JOIN_ROWS,
        shape.LEAD,
        shape.REPLACE_ROWS,
        shape.SLICE,
        shape.TAKE,
        heads.SLICE_GROUPS,
        heads.REPEAT_HEADS,
        heads.HEAD_DOT,
        latent.HEAD_MATMUL,
        latent.HEAD_MATMUL_UP,
        latent.JOIN_HEADS,
        matmul.MATMUL,
        low_rank.ADD_LOW_RANK,
        norm.RMS_NORM,
        layer_norm.LAYER_NORM,
        layer_norm.HEAD_RMS_NORM,
        layer_norm.HEAD_LAYER_NORM,
        routing.ROUTE_INDEX,
        routing.ROUTE_SHARE,
        experts.EXPERT_MATMUL,
        experts.SPREAD_EXPERTS,
        experts.COMBINE_EXPERTS,
        quantize.DEQUANTIZE,
        restore.RESTORE,
        quantized_matmul.DYNAMIC_QUANTIZE,
        quantized_matmul.QUANTIZED_MATMUL,
        unit_matmul.UNIT_MATMUL,
        bf16_matmul.BF16_PAIRS,
        bf16_matmul.BF16_MATMUL,
        attention.COSINE,
        attention.SINE,
        attention.ROPE,
        attention.TEMPER,
        attention.KV_APPEND,
        attention.ROPE_APPEND,
        attention.ATTENTION,
        recurrence.CAUSAL_CONV,
        recurrence.SSM_SCAN,
        recurrence.DELTA_SCAN,
        recurrence.TOKEN_SHIFT,
    )
}


def op(name: str) -> Op:
    """The operator of that name."""
    found = OPS.get(name)
    if found is None:
        raise InvalidIR(f"operator {name!r} is not in the table")
    return found


__all__ = ["OPS", "Kind", "Op", "op"]
