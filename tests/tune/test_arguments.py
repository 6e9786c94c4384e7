"""Kernels are measured with arguments that could be: rules may count on what producers leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sterna.base.dtype import F32
from sterna.base.target import host_target
from sterna.ir.compute import Group
from sterna.ir.expr import Var
from sterna.ir.graph import IRModule
from sterna.nn.trace import Trace
from sterna.passes.cleanup import cleanup
from sterna.passes.fuse import fuse
from sterna.passes.lower import lower
from sterna.passes.prepack import prepack
from sterna.passes.quantize_activations import quantize_activations
from sterna.quantize.pack import packed_spec
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.choose import plan_of
from sterna.tune.arguments import SLACK, drawn
from sterna.tune.build import build
from sterna.tune.functions import FunctionRunner
from sterna.tune.race import Setup, race
from sterna.tune.space import everything

ROWS, DEPTH = 64, 128
SIZES = {"n": 5}


def product(scheme: str, bits: int) -> Group:
    """y = x times a packed weight, x in codes, as the passes leave it."""
    packing = SCHEMES[scheme]
    trace, n = Trace("product"), Var("n", lo=1, hi=32)
    x = trace.param("x", (n, DEPTH), F32)
    parts = [trace.weight(k, s, d) for k, (s, d) in packed_spec((ROWS, DEPTH), packing).items()]
    weight = trace.emit(
        "dequantize", *parts, bits=packing.bits, group=packing.group, bias=packing.bias,
        layout=packing.layout, packing=packing.packing, rows=ROWS, depth=DEPTH,
    )  # fmt: skip
    function = trace.function(trace.emit("matmul", x, weight))
    module = quantize_activations(IRModule({function.name: function}, function.name, (n,)), bits)
    tiles = prepack(module)
    kernels = [f for f in fuse(cleanup(module)).functions.values() if f.primitive]
    return lower(kernels[-1], tiles).group


@pytest.mark.parametrize(("bits", "kind"), [(16, np.int16), (8, np.int8)])
def test_sums_are_those_of_the_codes(bits: int, kind: type[np.integer]) -> None:
    group = product("q4f16_1", bits)
    given = drawn(group, SIZES, np.random.default_rng(0))
    named = {
        b.name: a[:-SLACK].view(b.dtype.numpy) for b, a in zip(group.inputs, given, strict=True)
    }
    codes, sums = named["x_codes"].view(kind).reshape(5, 4, 32), named["x_sums"].reshape(5, 4)
    assert (codes.sum(axis=2, dtype=np.int64) == sums).all()
    assert sums.any()


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f16_1z"])
def test_no_rule_is_refused_for_what_was_drawn(scheme: str, bits: int, tmp_path: Path) -> None:
    group, target = product(scheme, bits), host_target()
    shipped = plan_of(group, target)
    plans = {p.rule: p for p in everything(shipped)} | {shipped.rule: shipped}
    ending = "_pairs" if target.byte_pairs and bits == 8 else ""
    assert set(plans) == {f"{rule}{ending}" for rule in ("matvec", "skinny_matmul", "matmul")}
    numbered = [shipped, *(p for p in plans.values() if p is not shipped)]
    numbered += [replace(p, knobs=replace(p.knobs, unroll=8)) for p in numbered]
    built = build(group, dict(enumerate(numbered)), target)
    with FunctionRunner([built], group, Setup(target, 1, SIZES), tmp_path) as runner:
        times = race(runner, sorted(built.entries))
    assert times.keys() == built.entries.keys()
    assert {numbered[i].rule for i in times} == set(plans)
    assert all(time.exact for time in times.values())
