"""Configurations and weight names of published models, as their authors wrote them."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import pytest

from sterna.base.errors import UnsupportedModel
from sterna.checkpoint.config import read_config
from sterna.convert.open_tensors import STORAGE_KEYS
from sterna.models import build, family
from sterna.models.params import is_ignored, stored_weights
from sterna.nn.decoder import Limits, trace_causal_lm
from sterna.passes.pipeline import graph_passes, run
from sterna.quantize.scheme import scheme

DEFAULTS = Path(__file__).parent / "goldens" / "default_configs.json"

PARAMETERS = {  # in millions, as the publishers count them
    "DeepSeek-R1-Distill-Qwen-32B": 32764,
    "Llama-3.1-70B-Instruct": 70554,
    "Llama-3.2-1B-Instruct": 1236,
    "Mistral-7B-Instruct-v0.3": 7248,
    "Olmo-3.1-32B-Instruct": 32234,
    "Phi-3.5-mini-instruct": 3821,
    "Qwen2.5-0.5B-Instruct": 494,
    "Qwen3-8B": 8191,
    "dolphin-2.5-mixtral-8x7b": 46703,
    "gemma-2-2b-it-finetune": 2614,
    "gemma-2b-it": 2506,
    "gemma-3-1b-it": 1000,
    "gpt2": 124,
    "gpt2-xl": 1558,
    "phi-2": 2780,
    "phi-4": 14660,
}
# Model types without a family, and what else a config asks for that no family does.
REFUSED = {
    "SmolLM-135M-seqcls": "'LlamaForSequenceClassification'",
    "baichuan": "'baichuan'",
    "bloom": "'bloom'",
    "pythia-410m-seqcls": "'GPTNeoXForSequenceClassification'",
}


def default_configs() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DEFAULTS.read_text())["configs"]
    return found


@pytest.mark.parametrize("model_type", default_configs())
def test_what_transformers_saves_today_is_read(model_type: str, tmp_path: Path) -> None:
    """Each default config: keys that newer versions write, such as rope_parameters and dtype."""
    (tmp_path / "config.json").write_text(json.dumps(default_configs()[model_type]))
    config = read_config(tmp_path)
    read = family(config).read_config(config)
    assert read.hidden_size == config.get("hidden_size", read.hidden_size)


@pytest.fixture(scope="module")
def configs(shared: Path) -> dict[str, dict[str, Any]]:
    paths = [
        p for name in ("configs", "configs-reduced") for p in (shared / name).glob("*/config.json")
    ]
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(paths)}
    return {  # how weights are stored is the converter's to read
        name: {k: v for k, v in config.items() if k not in STORAGE_KEYS}
        for name, config in found.items()
    }


def test_each_is_read_or_refused_by_name(configs: dict[str, dict[str, Any]]) -> None:
    refused = {}
    for name, config in configs.items():
        try:
            family(config).read_config(config)
        except UnsupportedModel as error:
            refused[name] = str(error)
    assert set(refused) == set(REFUSED)
    for name, reason in REFUSED.items():
        assert reason in refused[name]
        assert "upported" in refused[name]  # what is possible


def test_each_builds_its_graph(configs: dict[str, dict[str, Any]]) -> None:
    built = 0
    for name, config in configs.items():
        if name in REFUSED:
            continue
        module = trace_causal_lm(build(config, scheme("q4f16_1")), Limits(8, 4, 16))
        run(module, graph_passes(family(config).FUSED, code_bits=None))
        built += 1
    assert built == len(configs) - len(REFUSED)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_many_as_published(configs: dict[str, dict[str, Any]], name: str) -> None:
    total = 0
    for weight in stored_weights(configs[name], scheme("q0f16")):
        count = 1
        for size in weight.shape:
            count *= size
        total += count
    assert round(total / 1e6) == PARAMETERS[name]


def test_deepseek_v3_has_671_billion_parameters(configs: dict[str, dict[str, Any]]) -> None:
    sizes = {"hidden_size": 7168, "num_hidden_layers": 61, "n_routed_experts": 256}
    weights = stored_weights({**configs["deepseekv3"], **sizes}, scheme("q0f16"))
    assert round(sum(prod(weight.shape) for weight in weights) / 1e6) == 671026  # as published


def test_weight_names_are_those_of_the_indexes(shared: Path) -> None:
    read = 0
    for index in sorted((shared / "configs").glob("*/*.index.json")):
        config = json.loads((index.parent / "config.json").read_text())
        if index.parent.name in REFUSED:
            continue
        wanted = {s for w in stored_weights(config, scheme("q4f16_1")) for s in w.sources}
        listed = json.loads(index.read_text())["weight_map"]
        assert wanted == {name for name in listed if not is_ignored(config, name)}, index
        read += 1
    assert read >= 5
