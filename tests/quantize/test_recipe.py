"""Recipes: which scheme a weight has, their JSON, and JSON that lies."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.dtype import BF16, F16, F32
from sterna.base.errors import UnsafeFile
from sterna.quantize.ggml_blocks import GGML_SCHEMES
from sterna.quantize.recipe import Recipe, read_recipe, recipe_json
from sterna.quantize.scheme import SCHEMES, Scheme
from sterna.quantize.stored_schemes import (
    NF4,
    grid,
    indexed_grid,
    offset_grid,
    small_float,
    table,
)

ALL: list[Scheme] = [
    *SCHEMES.values(), *GGML_SCHEMES.values(), grid(4, 128, F16, F16),
    grid(8, 32, F16, F32, zero=128),
    indexed_grid(4, 32, F16, F16), offset_grid(3, 64, F16, BF16), small_float(8, 4, 128, BF16, F32),
    table("nf4", NF4, 64, F16, F32),
]  # fmt: skip


def test_json_and_back() -> None:
    own = {f"model.layers.{i}.weight": scheme for i, scheme in enumerate(ALL)}
    recipe = Recipe("mixed", SCHEMES["q0f16"], MappingProxyType(own))
    found = read_recipe("mixed", json.loads(json.dumps(recipe_json(recipe))), "file")
    assert dict(found.own) == own
    assert found.base is SCHEMES["q0f16"]


def test_what_is_not_named_follows_the_base() -> None:
    recipe = Recipe("r", SCHEMES["q4f16_1"], MappingProxyType({"a.weight": SCHEMES["q0f32"]}))
    assert recipe.for_weight("a.weight", "linear").name == "q0f32"
    assert recipe.for_weight("b.weight", "linear").name == "q4f16_1"
    assert recipe.for_weight("b.weight", "norm").name == "q0f16"
    assert recipe.compute == F16


def test_equal_names_of_different_schemes() -> None:
    own = {"a": grid(4, 32, F16, F16), "b": grid(4, 32, F16, F32)}
    recipe = Recipe("r", SCHEMES["q0f16"], MappingProxyType(own))
    found = recipe_json(recipe)
    assert sorted(found["schemes"]) == ["int4g32z", "int4g32z#2"]
    assert dict(read_recipe("r", found, "file").own) == own


PLAIN = {"name": "x", "bits": 4, "compute": "f16", "group": 32}


def record(**changes: Any) -> dict[str, Any]:
    return {"base": "q0f16", "schemes": {"x": {**PLAIN, **changes}}, "weights": {"a": "x"}}


LIES: dict[str, tuple[Any, str]] = {
    "no object": ([1], "JSON object"),
    "no base": ({"schemes": {}, "weights": {}}, "needs base"),
    "unknown base": ({"base": "q9", "schemes": {}, "weights": {}}, "not known"),
    "too many": (
        {"base": "q0f16", "schemes": {str(i): PLAIN for i in range(300)}, "weights": {}},
        "more than",
    ),
    "scheme is text": ({**record(), "schemes": {"x": "q4f16_1"}}, "needs name"),
    "no bits": ({**record(), "schemes": {"x": {"name": "x"}}}, "needs name"),
    "unknown field": (record(shape=[1]), "unknown field"),
    "not described": ({**record(), "weights": {"a": "y"}}, "not described"),
    "dtype": (record(compute="f8"), "not a dtype"),
    "scale": (record(scale=7), "not a dtype"),
    "bits": (record(bits=0), "not a code's"),
    "many bits": (record(bits=16), "not a code's"),
    "bits are true": (record(bits=True), "whole number"),
    "group": (record(group=33), "does not fill"),
    "huge group": (record(group=1 << 40), "whole number"),
    "minus": (record(group=-32), "whole number"),
    "outer": (record(group=32, outer=40), "do not fill"),
    "layout": (record(layout="XX"), "layout"),
    "packing": (record(packing=1), "packing"),
    "affine": (record(affine=1), "affine"),
    "levels": (record(levels="abc"), "levels"),
    "few levels": (record(levels=[1.0, 2.0]), "need 16 levels"),
    "levels are text": (record(levels=["a"] * 16), "levels"),
    "no groups": (record(group=0), "no groups"),
}


@pytest.mark.parametrize("lie", LIES)
def test_json_that_lies(lie: str) -> None:
    found, words = LIES[lie]
    with pytest.raises(UnsafeFile, match=words):
        read_recipe("r", found, "file")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(list(Scheme.__dataclass_fields__)), VALUES),
)
def test_any_field_of_any_kind_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        found = read_recipe("r", record(**changes), "file")
    except UnsafeFile:
        return
    assert found.own["a"].unit >= 0
