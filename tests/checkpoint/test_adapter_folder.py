"""Adapters' folders: read strictly, each lie and variation a sentence, whatever the bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.errors import CheckpointError, ShapeMismatch, UnsupportedModel
from sterna.checkpoint.lora import CONFIG, WEIGHTS, open_adapter, room_for
from sterna.checkpoint.safetensors import write_safetensors

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
STEM = "base_model.model.model.layers.3.self_attn.q_proj"


def write(folder: Path, config: dict[str, Any] | None = None, **shapes: tuple[int, ...]) -> Path:
    folder.mkdir(exist_ok=True)
    shapes = shapes or {"lora_A": (4, 6), "lora_B": (5, 4)}
    tensors = {f"{STEM}.{n}.weight": np.ones(s, np.float32) for n, s in shapes.items()}
    write_safetensors(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps(PLAIN if config is None else config))
    return folder


def test_what_is_read(tmp_path: Path) -> None:
    adapter = open_adapter(write(tmp_path / "a"))
    pair = adapter.pairs["model.layers.3.self_attn.q_proj"]
    assert (pair.rank, pair.scale, pair.transposed) == (4, 2.0, False)
    room = room_for([adapter, adapter])
    assert room is not None
    assert (room.count, room.rank) == (2, 4)
    assert room.modules == ("model.layers.{i}.self_attn.q_proj",)
    assert room_for([]) is None


@pytest.mark.parametrize(
    ("pattern", "scale"),
    [("q_proj", 8.0), ("self_attn.q_proj", 8.0), ("_proj", 2.0), ("attn.q_proj", 2.0)],
)
def test_patterns_name_ends_of_paths(tmp_path: Path, pattern: str, scale: float) -> None:
    adapter = open_adapter(write(tmp_path / "a", {**PLAIN, "alpha_pattern": {pattern: 32}}))
    assert [pair.scale for pair in adapter.pairs.values()] == [scale]


VARIATIONS: dict[str, tuple[dict[str, Any], type[CheckpointError], str]] = {
    "DoRA": ({"use_dora": True}, UnsupportedModel, "use_dora"),
    "PiSSA": ({"init_lora_weights": "pissa"}, UnsupportedModel, "init_lora_weights"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, UnsupportedModel, "alora"),
    "parameters": ({"target_parameters": ["experts.w"]}, UnsupportedModel, "target_parameters"),
    "a new option": ({"use_new_way": True}, UnsupportedModel, "use_new_way = True"),
    "a regex": ({"alpha_pattern": {"(a+)+$": 1}}, UnsupportedModel, "alpha_pattern"),
    "patterns in a list": ({"alpha_pattern": [1]}, CheckpointError, "alpha_pattern"),
    "no alpha": ({"lora_alpha": None}, CheckpointError, "lora_alpha"),
    "an endless alpha": ({"lora_alpha": 10**400}, CheckpointError, "lora_alpha"),
    "alpha is true": ({"lora_alpha": True}, CheckpointError, "lora_alpha"),
}


@pytest.mark.parametrize("title", VARIATIONS)
def test_variations_are_named(tmp_path: Path, title: str) -> None:
    changes, kind, words = VARIATIONS[title]
    with pytest.raises(kind, match=words) as caught:
        open_adapter(write(tmp_path / "a", {**PLAIN, **changes}))
    assert "\n" not in str(caught.value)


def test_all_that_peft_writes_is_known(tmp_path: Path) -> None:
    """The keys of version 0.18, with the values that a plain adapter has."""
    plain = {
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        "base_model_name_or_path": "user/base", "bias": "none", "corda_config": None,
        "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False,
        "inference_mode": True, "layer_replication": None, "layers_pattern": None,
        "layers_to_transform": None, "loftq_config": {}, "lora_bias": False, "lora_dropout": 0.1,
        "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None,
        "peft_version": "0.18.0", "qalora_group_size": 16, "rank_pattern": {}, "revision": "main",
        "target_modules": ["q_proj"], "target_parameters": None, "task_type": "CAUSAL_LM",
        "trainable_token_indices": None, "use_dora": False, "use_qalora": False,
        "use_rslora": True, "arrow_config": None, "ensure_weight_tying": False,
        "alora_invocation_tokens": None,
    }  # fmt: skip
    assert open_adapter(write(tmp_path / "a", {**PLAIN, **plain})).pairs


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "a rank of 0": {"lora_A": (0, 6), "lora_B": (5, 0)},
    "a huge rank": {"lora_A": (2048, 1), "lora_B": (1, 2048)},
    "another rank": {"lora_A": (4, 6), "lora_B": (5, 3)},
    "a vector": {"lora_A": (4,), "lora_B": (5, 4)},
    "a cube": {"lora_A": (4, 6), "lora_B": (5, 4, 1)},
}


@pytest.mark.parametrize("title", SHAPES)
def test_factors_that_are_no_pair(tmp_path: Path, title: str) -> None:
    with pytest.raises(ShapeMismatch):
        open_adapter(write(tmp_path / "a", **SHAPES[title]))


def test_halves_and_integers(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="no half"):
        open_adapter(write(tmp_path / "a", lora_A=(4, 6)))
    with pytest.raises(CheckpointError, match="no lora_A"):
        open_adapter(write(tmp_path / "b", lora_B=(5, 4)))
    folder = write(tmp_path / "c")
    whole = {f"{STEM}.lora_{n}.weight": np.ones((4, 4), np.int32) for n in "AB"}
    write_safetensors(folder / WEIGHTS, whole)
    with pytest.raises(ShapeMismatch, match="not floats"):
        open_adapter(folder)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=CONFIG):
        open_adapter(tmp_path)
    folder = write(tmp_path / "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")  # a pickle is never read
    with pytest.raises(CheckpointError, match=WEIGHTS):
        open_adapter(folder)


def opened(folder: Path) -> bool:
    """Whether a folder opens to an adapter that can be computed with, or is refused in a line."""
    try:
        pairs = open_adapter(folder).pairs.values()
    except CheckpointError as error:
        return "\n" not in str(error)
    return all(np.isfinite(pair.scale) and pair.rank > 0 for pair in pairs)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["peft_type", "r", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias"]
)


@settings(max_examples=150, deadline=None)
@given(changes=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_configuration_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "any", {**PLAIN, **changes})
    assert opened(folder)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = write(tmp_path_factory.getbasetemp() / "damaged")
    for name in (CONFIG, WEIGHTS):
        whole = bytearray((folder / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        (folder / name).write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    assert opened(folder)
