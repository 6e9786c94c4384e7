"""Grouped sums give the values of plain ones, for every packed format, and touch nothing else."""

import numpy as np
import pytest

from sterna.base.dtype import F32, I32
from sterna.ir.compute import Compute, Group
from sterna.ir.equal import equal
from sterna.ir.evaluate import evaluate_group
from sterna.ir.expr import Buffer, Var
from sterna.ir.graph import Function
from sterna.ir.rewrite import loads
from sterna.ir.verify import verify_group
from sterna.nn.trace import Trace
from sterna.passes import lower as lowering
from sterna.passes.lower import lower
from sterna.passes.regroup import regroup
from sterna.quantize.pack import dequantize, packed_spec, quantize
from sterna.quantize.scheme import Scheme, scheme

SCHEMES = ["q4f16_1", "q4f16_1z", "q3f16_1", "q3f16_1z", "q8f16_1", "q4f16_0", "q4f16_0z"]
DEPTHS = [256, 172]  # whole groups, a ragged last one
ROWS = 24


def product(spec: Scheme, depth: int) -> Function:
    """x[n, depth] @ weight.T, the weight packed by a scheme."""
    trace = Trace("product")
    shape = (ROWS, depth)
    x = trace.param("x", (Var("n", I32, 1, 8), depth), F32)
    parts = [trace.weight(f"w.{k}", s, d) for k, (s, d) in packed_spec(shape, spec).items()]
    weight = parts[0]
    if spec.is_quantized:
        weight = trace.emit(
            "dequantize", *parts, bits=spec.bits, group=spec.group, bias=spec.bias,
            layout=spec.layout, packing=spec.packing, rows=ROWS, depth=depth,
        )  # fmt: skip
    return trace.function(trace.emit("matmul", x, weight))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Lowering without grouped sums."""
    monkeypatch.setattr(lowering, "regroup", lambda group: group)
    return monkeypatch


def reduction(group: Group) -> Compute:
    """The sum over all of k: what reads x."""
    x = next(b for b in group.inputs if b.name == "x")
    return next(c for c in group.computes if any(n.buffer is x for n in loads(c.body)))


def values(group: Group, arrays: dict[str, np.ndarray]) -> np.ndarray:
    n = next(b for b in group.inputs if b.name == "x").shape[0]
    (out,) = evaluate_group(group, arrays, {n: 3}).values()
    return out


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", SCHEMES)
def test_values_stay_and_scales_are_taken_out(
    name: str, depth: int, plain: pytest.MonkeyPatch
) -> None:
    spec = scheme(name)
    before = lower(product(spec, depth), {}).group
    after = regroup(before)
    verify_group(after)
    assert reduction(before).over[0].extent.value == depth
    assert reduction(after).over[0].extent.value == spec.group
    assert reduction(after).axes[-1].extent.value == -(-depth // spec.group)
    scale = next(b for b in after.inputs if b.name.endswith("q_scale"))
    readers = [c for c in after.computes if any(n.buffer is scale for n in loads(c.body))]
    assert [len(c.over) for c in readers] == [1]  # the sum of groups, and no weight

    rng = np.random.default_rng(depth)
    packed = quantize(rng.standard_normal((ROWS, depth)).astype(np.float32), spec)
    x = rng.standard_normal((3, depth)).astype(np.float32)
    arrays = {f"w_{k}": a for k, a in packed.items()} | {"x": x}
    arrays = {b.name: arrays[b.name] for b in after.inputs}
    expected = x.astype(np.float64) @ dequantize(packed, spec, (ROWS, depth)).T.astype(np.float64)
    np.testing.assert_allclose(values(after, arrays), values(before, arrays), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(values(after, arrays), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_rest_of_a_ragged_group_counts_nothing(depth: int) -> None:
    """Where x is 1 the sum is that of the weights, each once."""
    spec = scheme("q4f16_1")
    packed = quantize(np.full((ROWS, depth), 0.5, np.float32), spec)
    group = lower(product(spec, depth), {}).group
    arrays = {f"w_{k}": a for k, a in packed.items()} | {"x": np.ones((3, depth), np.float32)}
    expected = dequantize(packed, spec, (ROWS, depth)).sum(1)
    np.testing.assert_allclose(values(group, arrays)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["q0f16", "q0f32", "q0bf16"])
def test_unpacked_weights_are_left_alone(name: str, plain: pytest.MonkeyPatch) -> None:
    group = lower(product(scheme(name), 64), {}).group
    assert regroup(group) == group or equal(regroup(group), group)
    assert [len(c.over) for c in group.computes if c.over] == [1]


def test_a_reduction_of_something_else_is_left_alone() -> None:
    trace = Trace("norm")
    x = trace.param("x", (Var("n", I32, 1, 8), 64), F32)
    weight = trace.weight("w", (64,), F32)
    group = lower(trace.function(trace.emit("rms_norm", x, weight, eps=1e-5)), {}).group
    assert equal(regroup(group), group)
    assert isinstance(group.outputs[0], Buffer)
