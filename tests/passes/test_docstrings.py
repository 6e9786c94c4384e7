"""The IR before and after in each pass's docstring is what the pass does."""

import inspect
import re
from collections.abc import Callable
from functools import partial

import pytest

from sterna.base.artifact import AdapterRoom
from sterna.base.dtype import F16, F32
from sterna.ir.equal import equal
from sterna.ir.parser import parse_group, parse_module
from sterna.ir.printer import to_text
from sterna.ir.verify import verify, verify_group
from sterna.passes.bf16_products import bf16_products
from sterna.passes.fuse import fuse
from sterna.passes.pipeline import graph_passes, infer
from sterna.passes.regroup import regroup
from sterna.passes.unit_products import unit_products

FUSED = {"gate_up": ("gate", "up")}  # the table that combine_matmul's example names
ROOM = AdapterRoom(count=2, rank=3, modules=("layers.{i}.up",))  # and add_adapters'
PASSES = {
    **dict(graph_passes(FUSED, code_bits=16, adapters=(ROOM, F32))),
    "bf16_products": bf16_products,
    "unit_products": partial(unit_products, operands=F16),
    "fuse": fuse,
}


def example(transform: Callable[..., object]) -> tuple[str, str]:
    """The texts under Before and After."""
    function = transform.func if isinstance(transform, partial) else transform
    found = re.search(r"\nBefore:\n(.*)\nAfter:\n(.*)", inspect.getdoc(function) or "", re.S)
    assert found, "the docstring holds no IR before and after"
    return inspect.cleandoc(found[1]), inspect.cleandoc(found[2])


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_does_what_its_docstring_shows(name: str) -> None:
    before, after = map(parse_module, example(PASSES[name]))
    verify(before, infer)
    done = PASSES[name](before)
    verify(done, infer)
    assert equal(done, after), to_text(done)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_leaves_its_own_result_alone(name: str) -> None:
    after = parse_module(example(PASSES[name])[1])
    assert equal(PASSES[name](after), after)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_does_not_change_what_it_is_given(name: str) -> None:
    before = parse_module(example(PASSES[name])[0])
    text = to_text(before)
    PASSES[name](before)
    assert to_text(before) == text


def test_regroup_does_what_its_docstring_shows() -> None:
    before, after = map(parse_group, example(regroup))
    done = regroup(before)
    verify_group(done)
    assert equal(done, after), to_text(done)
    assert equal(regroup(done), after)
