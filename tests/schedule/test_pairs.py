"""Sums in pairs of 16 bits that begin with the bias taken off: when they do, and that bits stay."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from schedule_groups import Array, product_arrays
from schedule_library import build
from test_quantized_products import kernels, scheme_of

from sterna.base.target import host_target
from sterna.ir.compute import Group
from sterna.ir.equal import equal
from sterna.ir.evaluate import evaluate_group
from sterna.ir.expr import Binary, Const, Expr, Intrin, Load, wrap
from sterna.ir.parser import parse_group
from sterna.ir.printer import to_text
from sterna.ir.rewrite import rewrite, visit
from sterna.ir.verify import verify_group
from sterna.schedule.choose import RULES, Plan, schedule
from sterna.schedule.pairs import in_pairs
from sterna.schedule.rules.product import MatmulKnobs, MatvecKnobs

FOUR, TWO = 0x0F0F0F0F, 0x03030303
# Of the four bytes of a word: those of the low half come first.
SIGNS = ((1, 1, 1, 1), (1, 1, -1, -1), (-1, -1, 1, 1), (-1, -1, -1, -1), (1, -1, 1, -1))


def group(mask: int, bias: int, steps: int, zero: str = "") -> Group:
    """One product of `steps` words of four bytes; `zero` is what stands for the bias."""
    return parse_group(f"""\
@group
def product(x: i32[n, {steps}], total: i32[n, 1], code: u32[{steps}, 8], zero: i32[8], *,
            n: dim(1, 64)):
    weight[p:{steps}, j:8]: i32 = i32(code[p, j] & {mask})
    sums[m:n, j:8, g:1]: i32 = sum(
        dot4(x[m, g * {steps} + i], weight[g * {steps} + i, j]) for i in range({steps}))
    acc[m:n, j:8]: f32 = sum(
        f32(sums[m, j, g] - {zero or bias} * total[m, g]) * 0.5 for g in range(1))
    return acc""")


def parts(made: Group) -> tuple[bool, bool, bool]:
    """Whether its sums are in pairs, whether they have a start, and whether the total corrects."""
    names = {n.name for c in made.computes for n in visit(c.body) if isinstance(n, Intrin)}
    sums, acc = (made.stage(name) for name in ("sums", "acc"))
    assert sums
    assert acc
    corrects = any(isinstance(n, Binary) and n.op == "-" for n in visit(acc.body))
    return "pair4" in names, sums.start is not None, corrects


def extremes(steps: int, largest: int) -> tuple[Array, Array]:
    """(bytes of x, codes): every sign of x at each byte, by none, all and either half of codes."""
    x = np.array([np.resize(np.array(s) * 127, 4 * steps) for s in SIGNS], np.int64)
    w = np.array([np.resize(np.array(c) * largest, 4 * steps) for c in (
        (0,), (1,), (0, 0, 1, 1), (1, 1, 0, 0), (1, 0), (0, 1, 1, 0), (0,) * steps + (1,), (1, 0, 0)
    )], np.int64)  # fmt: skip
    return x, w


def words(values: Array) -> Array:
    """Four bytes each in an i32."""
    return values.astype(np.int8).view(np.int32)


def test_the_docstrings_example() -> None:
    found = re.search(r"\nBefore:\n(.*)\nAfter:\n(.*)", inspect.getdoc(in_pairs) or "", re.S)
    assert found
    before, after = (parse_group(inspect.cleandoc(text)) for text in found.groups())
    done = in_pairs(before)
    verify_group(done)
    assert equal(done, after), to_text(done)
    assert in_pairs(done) is done


@pytest.mark.parametrize(
    ("mask", "bias", "steps", "found"),
    [
        (FOUR, 7, 8, (True, True, False)),
        (FOUR, 8, 8, (True, True, False)),  # 127 * 16 * (8 + 8) is 32512
        (FOUR, 9, 8, (True, False, True)),
        (FOUR, 6, 8, (True, True, False)),
        (FOUR, 15, 4, (True, True, False)),
        (FOUR, 16, 4, (True, True, False)),
        (FOUR, 17, 4, (True, False, True)),
        (FOUR, 7, 9, (False, False, True)),
        (TWO, 1, 42, (True, True, False)),
        (TWO, 2, 32, (True, True, False)),
        (TWO, 2, 33, (True, False, True)),
        (TWO, 3, 21, (True, True, False)),
        (TWO, 3, 22, (True, False, True)),
        (TWO, 1, 43, (False, False, True)),
    ],
)
def test_a_bias_is_taken_off_where_all_fits(
    mask: int, bias: int, steps: int, found: tuple[bool, bool, bool]
) -> None:
    """And the largest codes give the numbers of before, under the interpreter."""
    made = group(mask, bias, steps)
    done = in_pairs(made)
    assert parts(done) == found
    verify_group(done)
    x, w = extremes(steps, mask & 0xFF)
    arrays = {
        "x": words(x),
        "total": x.sum(1, keepdims=True).astype(np.int32),
        "code": words(w).view(np.uint32).T.copy(),
        "zero": np.zeros(8, np.int32),
    }
    dims = {made.inputs[0].shape[0]: len(x)}
    exact = (x @ (w - bias).T).astype(np.float32) * np.float32(0.5)
    for each in (made, done):
        (out,) = evaluate_group(each, arrays, dims).values()  # type: ignore[arg-type]
        assert np.array_equal(out, exact)


def test_one_bias_more_would_not_fit() -> None:
    """The bound is as large as can be: the next bias' low half wraps for some codes."""
    x, w = extremes(8, 15)
    for bias, fits in ((7, True), (8, True), (9, False)):
        low = np.isin(np.arange(32) % 4, (0, 1))
        ends = (x * low) @ w.T - bias * x.sum(1, keepdims=True)
        assert (abs(ends).max() <= 32767) == fits


def test_zero_points_stay_in_the_total() -> None:
    assert parts(in_pairs(group(FOUR, 0, 8, zero="zero[j]"))) == (True, False, True)


def test_sums_that_are_read_twice_or_made_here_keep_their_correction() -> None:
    text = to_text(group(FOUR, 7, 8))
    twice = text.replace("* 0.5", "* f32(sums[m, j, g])")
    made = text.replace("total[m, g]) *", "also[m, g]) *").replace(
        "    acc[", "    also[m:n, g:1]: i32 = total[m, g] * 2\n    acc["
    )
    for changed in (twice, made):
        assert changed != text
        assert parts(in_pairs(parse_group(changed))) == (True, False, True)


def biased(made: Group, bias: int) -> Group:
    """A Group whose total has another bias."""

    def other(e: Expr) -> Expr:
        corrects = isinstance(e, Binary) and e.op == "*" and isinstance(e.a, Const)
        found = corrects and isinstance(e.b, Load) and e.b.buffer.name == "x_sums"
        return wrap(bias) * e.b if found and isinstance(e, Binary) else e

    changed = tuple(c.rewritten(lambda value: rewrite(value, other)) for c in made.computes)
    return replace(made, computes=changed)


@pytest.mark.parametrize("bias", [7, 8, 9])
def test_the_largest_codes_have_the_bits_of_sums_in_32(bias: int, tmp_path: Path) -> None:
    """By every rule, compiled: numbers that fill the 16 bits to their limits, and random ones."""
    shape, lanes, rng = (64, 192), host_target().lanes(), np.random.default_rng(bias)
    made = kernels("q4f16_1 i8", 32, shape)["product"]
    product = biased(made, bias)
    assert equal(product, made) == (bias == 7)
    arrays = product_arrays(shape, scheme_of("q4f16_1 i8"), 7)
    code = arrays["layer_q_weight"]
    choices = np.array([0, 0xFFFFFFFF, 0x0F0F0F0F, 0xF0F0F0F0, 0xFFFF0000, 0x12345678], np.uint32)
    arrays["layer_q_weight"] = choices[rng.integers(0, 6, code.shape)]
    x = np.concatenate([np.tile(extremes(8, 15)[0], 6), rng.integers(-127, 128, (2, 192))])
    arrays |= {
        "x_codes": words(x),
        "x_scales": rng.standard_normal((7, 6), np.float32),
        "x_sums": x.reshape(7, 6, 32).sum(-1).astype(np.int32),
    }
    plans = {}
    for rule, knobs in (
        ("matvec", MatvecKnobs(lanes)),
        ("skinny_matmul", MatmulKnobs(lanes, tokens=3)),
        ("matmul", MatmulKnobs(lanes, tokens=3, rows=12)),
        ("matmul", MatmulKnobs(lanes, tokens=2, vectors=2, depth=40, rows=12)),
    ):
        for plan in (Plan(rule, knobs), Plan(f"{rule}_pairs", knobs)):
            form = RULES[plan.rule].form or (lambda group: group)
            one = replace(form(product), name=f"product_{len(plans)}")
            started = [c for c in one.computes if c.start is not None]
            assert bool(started) == (plan.rule.endswith("_pairs") and bias < 9)
            plans[one.name] = (one, schedule(product, plan))
    library = build(plans, host_target(), tmp_path)
    outs = {next(iter(library.run(name, arrays, n=7).values())).tobytes() for name in plans}
    assert len(outs) == 1
