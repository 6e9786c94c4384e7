"""Variants are read from shapes, whoever wrote the folder."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import ShapeMismatch
from sterna.quantize.infer import infer
from sterna.quantize.pack import packed_spec
from sterna.quantize.scheme import MLC_SCHEMES, SCHEMES, Scheme, scheme

STORED = [row for row in [*SCHEMES.values(), *MLC_SCHEMES.values()] if row.is_quantized]


def shapes(weight: tuple[int, ...], row: Scheme) -> tuple[tuple[int, ...], tuple[int, ...]]:
    spec = packed_spec(weight, row)
    return spec["q_weight"][0], spec["q_scale"][0]


@pytest.mark.parametrize("stored", STORED, ids=lambda row: f"{row.name}-g{row.group}")
@settings(derandomize=True, max_examples=40, deadline=None)
@given(lead=st.lists(st.integers(1, 200), min_size=1, max_size=2), k=st.integers(1, 3000))
def test_what_was_stored_is_found(stored: Scheme, lead: list[int], k: int) -> None:
    weight = (*lead, k)
    named = scheme(stored.name)
    found = infer(named, *shapes(weight, stored), weight)
    assert shapes(weight, found) == shapes(weight, stored)
    assert (found.name, found.bits, found.compute) == (stored.name, stored.bits, stored.compute)
    assert (found.group, found.packing) == (stored.group, stored.packing)
    if len(weight) == 2:
        assert found.layout == stored.layout


def test_an_embedding_is_nk_in_a_kn_scheme() -> None:
    found = infer(scheme("q4f16_0"), (512, 32), (512, 8), (512, 256))
    assert found == replace(MLC_SCHEMES["q4f16_0"], layout="NK")


def test_a_group_size_nobody_named() -> None:
    assert infer(scheme("q4f16_1"), (64, 128), (64, 16), (64, 1024)).group == 64
    assert infer(scheme("q8f16_1z"), (64, 256), (64, 8), (64, 1024)).group == 128


@pytest.mark.parametrize(
    ("q_weight", "q_scale", "weight"),
    [
        ((64, 128), (64, 31), (64, 1024)),
        ((64, 128), (64, 32), (64, 1056)),
        ((64, 127), (64, 32), (64, 1024)),
        ((63, 128), (63, 32), (64, 1024)),
        ((64, 128), (64, 0), (64, 1024)),
        ((64, 0), (64, 0), (64, 1024)),
        ((64, 0), (64, 4), (64, 1024)),
        ((), (), (64, 1024)),
        ((64,), (64,), (64,)),
        ((64, 128), (32,), (64, 1024)),
        ((1, 64, 128), (1, 64, 32), (64, 1024)),
    ],
)
def test_shapes_that_fit_nothing(
    q_weight: tuple[int, ...], q_scale: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    with pytest.raises(ShapeMismatch, match="not a 4-bit weight of shape"):
        infer(scheme("q4f16_1"), q_weight, q_scale, weight)


def test_plain_schemes_have_no_packed_tensors() -> None:
    with pytest.raises(ShapeMismatch, match="q0f16 has plain weights"):
        infer(scheme("q0f16"), (64, 128), (64, 32), (64, 1024))


def test_the_folder_of_a_published_llama(shared: Path) -> None:
    folder = shared / "mlc-format" / "Llama-3-8B-Instruct-q4f16_1"
    if not folder.is_dir():
        pytest.skip("needs the metadata of a published MLC folder in ../shared/data/mlc-format")
    config = json.loads((folder / "mlc-chat-config.json").read_text())["model_config"]
    shards = json.loads((folder / "ndarray-cache.json").read_text())["records"]
    found = {r["name"]: tuple(r["shape"]) for shard in shards for r in shard["records"]}
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights = {
        "model.embed_tokens": (config["vocab_size"], hidden),
        "model.layers.0.mlp.gate_up_proj": (2 * inner, hidden),
        "model.layers.31.mlp.down_proj": (hidden, inner),
        "lm_head": (config["vocab_size"], hidden),
    }
    named = scheme("q4f16_1")
    for name, shape in weights.items():
        assert infer(named, found[f"{name}.q_weight"], found[f"{name}.q_scale"], shape) == named
