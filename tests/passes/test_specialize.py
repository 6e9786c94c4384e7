"""Specializing narrows bounds and nothing else."""

import numpy as np
from test_passes_keep_numbers import outcome, passed, traced, weights

from sterna.ir.graph import IRModule, Value
from sterna.ir.printer import to_text
from sterna.ir.verify import verify
from sterna.passes.fuse import fuse
from sterna.passes.pipeline import infer
from sterna.passes.specialize import specialize


def whole() -> IRModule:
    return fuse(passed(traced("llama3.2-tied", "q4f16_1"), "llama3.2-tied"))


def values(module: IRModule) -> list[Value]:
    return [
        v
        for f in module.functions.values()
        for v in (*f.params, *f.weights, *f.results,
                  *(v for b in f.bindings for v in (*b.call.args, *b.outs)))
    ]  # fmt: skip


def test_only_the_bounds_named_change() -> None:
    before = whole()
    after = specialize(before, {"n": 5, "r": 3})
    verify(after, infer)
    bounds = {d.name: (d.lo, d.hi) for d in after.dims}
    assert bounds == {d.name: (d.lo, d.hi) for d in before.dims} | {"n": (1, 5), "r": (1, 3)}
    text = to_text(before).replace("n = dim(1, 8)", "n = dim(1, 5)")
    assert to_text(after) == text.replace("r = dim(1, 8)", "r = dim(1, 3)")


def test_no_dim_of_old_is_left() -> None:
    before = whole()
    after = specialize(before, {"n": 5})
    old = next(d for d in before.dims if d.name == "n")
    assert any(old is extent for v in values(before) for extent in v.shape)
    assert not any(old is extent for v in values(after) for extent in v.shape)


def test_shared_values_stay_shared() -> None:
    """A kernel's parameters are the values of its caller; memory planning rests on that."""
    before, after = whole(), specialize(whole(), {"n": 5})
    assert len(values(before)) == len(values(after))
    assert len(set(values(before))) == len(set(values(after)))
    for function in after.functions.values():
        for binding in function.bindings:
            callee = after.functions.get(binding.call.op)
            if callee is not None and callee.primitive:
                assert binding.call.args == callee.params
                assert binding.outs == callee.results


def test_the_module_given_is_not_changed() -> None:
    before = whole()
    text = to_text(before)
    specialize(before, {"n": 5})
    assert to_text(before) == text


def test_numbers_stay() -> None:
    before, stored = whole(), weights("llama3.2-tied", "q4f16_1", stacked=True)
    after = specialize(before, {"n": 5, "r": 3, "t": 2})
    for a, b in zip(outcome(before, stored), outcome(after, stored), strict=True):
        np.testing.assert_array_equal(a, b)
