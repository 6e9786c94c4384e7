"""Sums of whole numbers in floats: which Groups become such, and which sums a unit may be given."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import numpy as np
import pytest
from schedule_groups import product_group
from test_quantized_products import kernels

from sterna.base.dtype import F32
from sterna.base.errors import ScheduleError
from sterna.ir.compute import SUM, Compute, Group, axis
from sterna.ir.evaluate import evaluate_group
from sterna.ir.expr import Buffer, cast, wrap
from sterna.ir.parser import parse_group
from sterna.ir.printer import to_text
from sterna.ir.verify import verify_group
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.apply import apply
from sterna.schedule.steps import At, Pad, Tensorize
from sterna.schedule.whole import digits_of, has_digits, in_digits


def example() -> tuple[Group, str]:
    """The Group before, and the text after, of the docstring."""
    told = inspect.getdoc(in_digits) or ""
    found = re.search(r"\nBefore:\n(.*)\nAfter:\n(.*)", told, re.S)
    assert found
    return parse_group(inspect.cleandoc(found[1])), inspect.cleandoc(found[2])


def test_the_docstrings_example() -> None:
    before, after = example()
    done = in_digits(before)
    verify_group(done)
    assert to_text(done) == to_text(parse_group(after))


def test_the_same_numbers() -> None:
    group, _ = example()
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.integers(-(1 << 31), 1 << 31, (5, 8)).astype(np.int32),
        "code": rng.integers(0, 1 << 32, (32, 8)).astype(np.uint32),
        "scale": rng.standard_normal(32).astype(np.float32),
    }
    dims = {group.inputs[0].shape[0]: 5}
    (before,) = evaluate_group(group, arrays, dims).values()  # type: ignore[arg-type]
    (after,) = evaluate_group(in_digits(group), arrays, dims).values()  # type: ignore[arg-type]
    assert np.array_equal(before, after)


@pytest.mark.parametrize(("name", "digits"), [("q4f16_1", 2), ("q4f16_1 i8", 1), ("q8f16_1z", 2)])
def test_what_has_digits(name: str, digits: int) -> None:
    group = kernels(name, 64)["product"]
    assert has_digits(group, 16)
    assert not has_digits(group, 48)  # groups of 32 are no multiple of it
    assert len(digits_of(in_digits(group)).digits) == digits


def test_what_has_none() -> None:
    floats = product_group("floats", (32, 64), SCHEMES["q4f16_1"], 64)
    codes = kernels("q4f16_1", 64)
    for group in (floats, codes["codes"]):
        assert not has_digits(group, 16)
        with pytest.raises(ScheduleError, match="no sum of dot products of codes below 256"):
            in_digits(group)
    with pytest.raises(ScheduleError, match="no product of digits"):
        digits_of(codes["product"])
    wide = codes["product"]
    weight = replace(wide.computes[0], body=wide.computes[0].body | 0x0F00)
    again = replace(wide, computes=(weight, *wide.computes[1:]))
    assert not has_digits(again, 16)  # codes that may have more than 8 bits


def test_a_sum_of_floats_is_not_for_a_unit() -> None:
    group = product_group("floats", (32, 64), SCHEMES["q0f32"], 64, epilogue=False)
    out = group.outputs[0].name
    steps = (At(f"{out}.acc", out, "n", "register"), At(f"{out}.weight", out, "n", "shared"))
    with pytest.raises(ScheduleError, match="stages of whole numbers in f16, below 2048"):
        apply(group, (*steps, Tensorize(f"{out}.acc", "k")))


def test_a_sum_that_f32_does_not_hold_is_not_for_a_unit() -> None:
    group = in_digits(kernels("q8f16_1", 64)["product"])
    found = digits_of(group)
    sums = found.sums[1]
    long = axis("i", 512)
    bigger = replace(sums, over=(long,), body=sums.body)
    longer = replace(group, computes=tuple(bigger if c is sums else c for c in group.computes))
    steps = tuple(At(s.name, found.out.name, "b", "register") for s in (found.total,))
    steps += tuple(At(s.name, found.total.name, "g", "register") for s in found.sums)
    steps += tuple(At(s.name, found.total.name, "g", "shared") for s in found.digits)
    steps += (At(found.weight.name, found.total.name, "g", "shared"),)
    with pytest.raises(ScheduleError, match="512 products up to 65025 may not be exact in f32"):
        apply(longer, (*steps, Tensorize(sums.name, "i")))


def test_a_padded_axis_has_to_be_there() -> None:
    x = Buffer("x", F32, (wrap(4), wrap(8)))
    a, b = axis("a", 4), axis("b", 8)
    stage = Compute(Buffer("s", F32, x.shape), (a, b), x[a.var, b.var] * 2.0)
    a, i = axis("a", 4), axis("i", 8)
    total = Compute(Buffer("t", F32, (wrap(4),)), (a,), cast(F32, stage.out[a.var, i.var]),
                    over=(i,), combine=SUM)  # fmt: skip
    a = axis("a", 4)
    out = Compute(Buffer("y", F32, (wrap(4),)), (a,), total.out[a.var])
    group = Group("g", (x,), (out.out,), (stage, total, out))
    steps = (At("t", "y", "a", "register"), At("s", "t", "i", "shared"))
    assert 'alloc("shared", f32, 1, 9)' in to_text(apply(group, (*steps, Pad("s", "b", 8))))
    with pytest.raises(ScheduleError, match="stage 's' has no axis 'c' to pad"):
        apply(group, (*steps, Pad("s", "c", 8)))
