"""Rotary frequencies against those of transformers, and the config keys that lead to them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.models.rope_options import KEYS, rope_options
from sterna.models.rope_scaling import RopeOptions, inv_freq

CASES = json.loads((Path(__file__).parent / "goldens" / "rope.json").read_text())["cases"]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_frequencies_are_those_of_transformers(case: dict[str, Any]) -> None:
    options = rope_options(case["config"])
    found, attention = inv_freq(options, case["head_dim"], case["context_length"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.float32(case["inv_freq"]), rtol=1e-6)
    assert attention == pytest.approx(case["attention_factor"], rel=1e-12)


def test_goldens_cover_every_type_in_both_forms() -> None:
    found = {(rope_options(c["config"]).type, "rope_parameters" in c["config"]) for c in CASES}
    assert found >= {(kind, False) for kind in KEYS}
    assert found >= {(kind, True) for kind in KEYS if kind != "dynamic"}


def test_absent_empty_and_null_are_the_default() -> None:
    for config in ({}, {"rope_scaling": None}, {"rope_parameters": None}, {"rope_scaling": {}}):
        assert rope_options(config) == RopeOptions()


def test_both_forms_may_stand_beside_each_other_when_they_agree() -> None:
    config = {
        "rope_theta": 500.0,
        "rope_scaling": {"type": "linear", "factor": 2},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    }
    assert rope_options(config) == RopeOptions(type="linear", theta=500.0, factor=2.0)
    with pytest.raises(CheckpointError, match="both rope_parameters and rope_scaling"):
        rope_options({**config, "rope_scaling": {"type": "linear", "factor": 3}})


@pytest.mark.parametrize("kind", ["mrope", "proportional", "ntk", "", "Linear"])
def test_an_unknown_type_is_refused_with_those_that_exist(kind: str) -> None:
    with pytest.raises(
        UnsupportedModel, match="supported are default, linear, dynamic, yarn, llama3"
    ):
        rope_options({"rope_scaling": {"type": kind, "factor": 2.0}})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2, "beta": 1}}, "'beta', which rope type"),
        ({"rope_scaling": {"factor": 2.0}}, "rope type 'default' does not read"),
        ({"rope_scaling": {**YARN, "long_factor": [1.0]}}, "'long_factor'"),
        ({"rope_scaling": {**LLAMA3, "attention_factor": 1.0}}, "'attention_factor'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            "partial_rotary_factor 0.25",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "each kind of layer \\(\\['full_attention'\\]\\)",
        ),
    ],
)
def test_what_sterna_lacks_is_unsupported(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnsupportedModel, match=sentence):
        rope_options({"max_position_embeddings": 4096, **config})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"rope_scaling": "linear"}, "rope_scaling in config.json is 'linear'; an object or null"),
        ({"rope_scaling": [1]}, "an object or null"),
        ({"rope_scaling": False}, "an object or null"),
        ({"rope_parameters": 0}, "rope_parameters in config.json is 0"),
        ({"rope_theta": "10000"}, "config.json.rope_theta is '10000'; a number above 1"),
        ({"rope_theta": True}, "rope_theta is True"),
        ({"rope_theta": 1}, "a number above 1"),
        ({"rope_theta": float("nan")}, "a number above 1"),
        ({"rope_theta": float("inf")}, "a number above 1"),
        ({"rope_theta": 10**400}, "a number above 1 is needed"),
        ({"rope_scaling": {"type": 3}}, "rope_scaling.rope_type in config.json is 3; a string"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, "remove the one"),
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": None}}, "lacks 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor in config.json is '2'"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "a number of at least 1"),
        ({"rope_scaling": {"type": "dynamic", "factor": [2]}}, "a number of at least 1"),
        (
            {
                "rope_scaling": {
                    "type": "dynamic",
                    "factor": 2,
                    "original_max_position_embeddings": 9,
                }
            },
            "9 and as 4096 positions",
        ),
        (
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}},
            "must not be below low_freq_factor",
        ),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 0}}, "a number above 0"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks 'low_freq_factor'"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "1 or more"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 1e3}}, "a whole number"),
        ({"rope_scaling": {**YARN, "beta_fast": 0.5}}, "must be at least beta_slow, which is 1"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "true or false"),
        ({"rope_scaling": {**YARN, "attention_factor": 0.0}}, "a number above 0"),
        ({"rope_scaling": {**YARN, "mscale": -1}}, "a number of at least 0"),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": None,
                    "original_max_position_embeddings": 9999,
                }
            },
            "below the original context of 9999",
        ),
        ({"original_max_position_embeddings": 7, "rope_scaling": YARN}, "7 and as 1024 positions"),
        (
            {"rope_theta": 10.0, "rope_parameters": {"rope_theta": 20.0}},
            "gives rope_theta 10 and rope_parameters.rope_theta 20",
        ),
    ],
)
def test_a_wrong_value_is_one_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence) as caught:
        rope_options({"max_position_embeddings": 4096, **config})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
RARELY_GOOD = JSON | st.sampled_from([*KEYS, 2.0, 64, 1.5])
SECTION = st.dictionaries(
    st.sampled_from(sorted({"type", "rope_type", "rope_theta", *sum(KEYS.values(), ())})),
    RARELY_GOOD,
)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    config=st.fixed_dictionaries(
        {"rope_scaling": SECTION | JSON},
        optional={
            "rope_parameters": SECTION | JSON,
            "rope_theta": RARELY_GOOD,
            "max_position_embeddings": RARELY_GOOD,
            "partial_rotary_factor": RARELY_GOOD,
            "original_max_position_embeddings": RARELY_GOOD,
        },
    )
)
def test_any_json_gives_frequencies_or_one_short_sentence(config: dict[str, Any]) -> None:
    sentence = ""
    try:
        found, attention = inv_freq(rope_options(config), 64)
    except CheckpointError as error:
        sentence = str(error)
        found, attention = np.ones(1, np.float32), 1.0
    assert len(sentence) < 400
    assert "\n" not in sentence
    assert np.isfinite(found).all()
    assert np.isfinite(attention)


def test_a_type_that_needs_the_trained_length_asks_for_it() -> None:
    with pytest.raises(CheckpointError, match="max_position_embeddings is None; a whole number"):
        rope_options({"rope_scaling": {"type": "dynamic", "factor": 2.0}})


@pytest.mark.parametrize("size", [0, -2, 7])
def test_heads_must_be_even(size: int) -> None:
    with pytest.raises(UnsupportedModel, match="a positive even number"):
        inv_freq(RopeOptions(), size)


def test_dynamic_needs_more_than_one_pair() -> None:
    options = RopeOptions(type="dynamic", factor=2.0, original_length=16)
    assert inv_freq(options, 2, 16)[0].tolist() == [1.0]
    with pytest.raises(UnsupportedModel, match="above 2"):
        inv_freq(options, 2, 17)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["linear", "dynamic", "yarn", "llama3"]),
    factor=st.floats(1.0, 64.0),
    length=st.integers(1, 1 << 20),
    theta=st.floats(2.0, 1e8),
    half=st.integers(2, 128),
    truncate=st.booleans(),
)
def test_scaling_slows_between_not_at_all_and_by_the_factor(
    kind: Any, factor: float, length: int, theta: float, half: int, truncate: bool
) -> None:
    options = RopeOptions(kind, theta, factor, length, truncate=truncate)
    plain, _ = inv_freq(RopeOptions(theta=theta), 2 * half)
    scaled, _ = inv_freq(options, 2 * half, 2 * length)
    assert scaled.dtype == np.float32
    assert scaled.shape == (half,)
    assert np.all(scaled <= plain * (1 + 1e-5))
    slowest = factor + 1 if kind == "dynamic" else factor  # at twice the length, base grows so
    assert np.all(scaled * slowest >= plain * (1 - 1e-5))


def test_dynamic_never_shrinks_below_its_original_length() -> None:
    options = RopeOptions(type="dynamic", factor=2.0, original_length=2048)
    plain, _ = inv_freq(RopeOptions(), 64)
    for length in (None, 0, 1, 2048):
        np.testing.assert_array_equal(inv_freq(options, 64, length)[0], plain)
    assert inv_freq(options, 64, 2049)[0][-1] < plain[-1]
