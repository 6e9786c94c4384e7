"""Whatever stands in a config.json: its family builds the model, or says in a line why not."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import tiny_families
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna import models
from sterna.base.errors import Error
from sterna.quantize.scheme import SCHEMES

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": dict(tiny.VARIANTS["llama2-gqa"]),
    **{name: dict(config) for name, config in tiny_families.VARIANTS.items()},
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([64, 1 << 20, 1 << 31, 1 << 70]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.lists(st.integers(0, 3) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["type", "rope_type", "factor"]), st.integers(0, 9)),
)


def built(config: dict[str, Any]) -> bool:
    """Whether a config builds, or is refused in a line of bounded length."""
    try:
        models.build(config, SCHEMES["q0f32"], 64)
    except Error as error:
        return "\n" not in str(error) and len(str(error)) < 2000
    return True


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=25, derandomize=True, deadline=2000)
@given(data=st.data())
def test_any_value_builds_or_is_refused(name: str, data: st.DataObject) -> None:
    config = dict(CONFIGS[name])
    for _ in range(data.draw(st.integers(1, 2))):
        key = data.draw(st.sampled_from(sorted(config)))
        if data.draw(st.integers(0, 4)):
            config[key] = data.draw(VALUES)
        else:
            del config[key]
        if not config:
            break
    assert built(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_they_are_they_build(name: str) -> None:
    assert models.build(CONFIGS[name], SCHEMES["q0f32"], 64).cache.layers > 0
