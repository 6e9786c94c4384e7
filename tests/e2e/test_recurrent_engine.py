"""A recurrent model in the engine: states are kept apart, given back, and never go back."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled import Compiled, build_drawn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny_families
from test_family_logits import weights

from sterna.base.artifact import CompileOptions
from sterna.base.dtype import F32
from sterna.base.errors import CheckpointError, RequestError, UsageError
from sterna.base.target import host_target, parse_target
from sterna.cli.main import main
from sterna.compiler import compile_model
from sterna.convert.forward import all_logits
from sterna.engine.engine import Engine
from sterna.engine.limits import draft_limits, plan
from sterna.engine.options import EngineOptions
from sterna.models import family
from sterna.text.tokenizer import Tokenizer
from sterna.web_folder import compile_folder

MAMBA2, RWKV7 = (tiny_families.VARIANTS[name] for name in ("mamba2", "rwkv7"))
# What a layer keeps: the convolution's last inputs, and a row of 8 for each channel; two last
# inputs, and a row of 64 for each channel.
ELEMENTS = {"mamba2": 3 * 128 + 96 * 8, "rwkv7": 2 * 128 + 128 * 64}
SIZES = {"context_window_size": 128, "prefill_chunk_size": 32, "max_batch_size": 4}
ASKED = {"max_tokens": 16, "ignore_eos": True, "seed": 5, "temperature": 1.0,
         "return_token_ids": True}  # fmt: skip
PROMPTS = [[3 + (5 * s + i * i) % 60 for i in range(7 + 9 * s)] for s in range(6)]


@pytest.fixture(scope="module", params=list(ELEMENTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def compiled(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root, published = tmp_path_factory.mktemp(variant), dict(tiny_families.VARIANTS[variant])
    if variant == "mamba2":
        published["time_step_limit"] = [0.0, float("inf")]  # in JSON: Infinity
    return build_drawn(root, published, weights(variant), "q4f16_1", **SIZES)


def engine(made: Compiled, num_pages: int, **options: Any) -> Engine:
    return Engine.from_parts(
        made.load(threads=2, num_pages=num_pages),
        Tokenizer.load(made.folder),
        None,
        "tiny",
        options=EngineOptions(**({"mode": "server"} | options)),
    )


def ask(model: Engine, prompts: list[list[int]]) -> list[Any]:
    found = model.completions.create(prompt=prompts, **ASKED)
    model._core.call(model._core.scheduler.check)
    return [choice.token_ids for choice in found.choices]


@pytest.fixture(scope="module")
def alone(compiled: Compiled) -> Iterator[list[Any]]:
    with engine(compiled, 1) as model:
        yield [ask(model, [prompt])[0] for prompt in PROMPTS]


@pytest.mark.parametrize("pages", [2, 4])
def test_together_and_in_turns(compiled: Compiled, alone: list[Any], pages: int) -> None:
    """More sequences than pages: each takes a page that another had; chunks are of 32 tokens."""
    with engine(compiled, pages) as model:
        assert ask(model, PROMPTS) == alone
        assert model.metrics()["prefix_hits"] == 0
        assert ask(model, PROMPTS[::-1]) == alone[::-1]


def test_a_cancelled_answer_leaves_nothing(compiled: Compiled, alone: list[Any]) -> None:
    with engine(compiled, 1) as model:
        for _ in range(2):
            stream = model.completions.create(prompt=[PROMPTS[5]], stream=True, **ASKED)
            next(iter(stream))
            stream.close()
        assert ask(model, [PROMPTS[0]]) == alone[:1]


def test_there_is_a_page_for_each_sequence(compiled: Compiled) -> None:
    manifest = compiled.load(num_pages=1).manifest
    for mode, sequences in (("local", 4), ("interactive", 1), ("server", 4)):
        limits = plan(EngineOptions(mode=mode), manifest)
        assert (limits.num_pages, limits.page_size) == (sequences, 128)
        assert not limits.prefix_cache


def test_inspection_speaks_of_states(
    variant: str, compiled: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(compiled.library)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"2 layers of {ELEMENTS[variant]} numbers, f32, for each sequence" in shown
    assert "the state of a sequence, of any length" in shown


def test_what_would_go_back_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    manifest = compiled.load(num_pages=1).manifest
    for name, value in (("speculative", "ngram"), ("prefix_cache_dir", str(tmp_path))):
        with pytest.raises(RequestError, match=f"{name} was asked for, but the model is recurrent"):
            plan(EngineOptions(**{name: value}), manifest)
    with pytest.raises(RequestError, match="the draft model is recurrent"):
        draft_limits(plan(EngineOptions(), manifest), manifest, 4)
    options = CompileOptions(kv_dtype="q8")
    with pytest.raises(UsageError, match="keeps its states in f32"):
        compile_model(compiled.folder, host_target(), tmp_path / "q8.so", options=options)

    with pytest.raises(UsageError, match="models are recurrent, which the package for browsers"):
        compile_folder(compiled.folder, parse_target("webgpu"), tmp_path / "web")


@pytest.mark.parametrize("name", ["mamba2", "rwkv7", "rwkv7-3-layers"])
def test_the_forward_pass_in_numpy_is_that_of_the_goldens(name: str) -> None:
    """What receipts and calibration compute: two documents, each from a state of zero."""
    drawn, prompt, config = weights(name), tiny_families.PROMPT, tiny_families.VARIANTS[name]
    model = family(config).build(config, F32)
    found = all_logits(model, [prompt[:9], prompt], lambda name, _: drawn[name])
    wanted = tiny_families.golden(name)[0]
    assert np.abs(found[9:][list(tiny_families.POSITIONS)] - wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("layers", "width", "ranks", "count"),
    [
        (12, 768, (64, 128, 64, 32), 191_034_624),
        (24, 1024, (64, 128, 64, 32), 450_767_872),
        (24, 2048, (96, 256, 96, 64), 1_527_404_544),
        (32, 2560, (96, 320, 96, 64), 2_947_735_040),
    ],
)
def test_published_sizes_of_rwkv7(
    layers: int, width: int, ranks: tuple[int, ...], count: int
) -> None:
    """World 0.1B to 2.9B: the numbers of parameters that their paper states."""
    letters = ("decay", "gate", "a", "v")
    config = {
        "model_type": "rwkv7",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "vocab_size": 65536,
        **{f"{letter}_low_rank_dim": rank for letter, rank in zip(letters, ranks, strict=True)},
    }
    found = family(config).build(config, F32).parameters()
    assert sum(math.prod(p.shape) for _, p in found) == count


@pytest.mark.parametrize(
    ("known", "changed", "told"),
    [
        (MAMBA2, {"num_heads": 5}, "heads must fill the width"),
        (MAMBA2, {"n_groups": 4}, "groups divide the heads"),
        (MAMBA2, {"state_size": -1}, "state_size"),
        (MAMBA2, {"conv_kernel": 10**9}, "conv_kernel"),
        (MAMBA2, {"time_step_limit": [0.0, 0.5]}, "time_step_limit"),
        (MAMBA2, {"rms_norm": False}, "rms_norm"),
        (RWKV7, {"num_heads": 3}, "3 heads of 64 for a hidden_size of 128, which they must fill"),
        (RWKV7, {"head_dim": 10**9}, "head_dim"),
        (RWKV7, {"value_dim": [128, 256]}, "value_dim"),
        (RWKV7, {"value_dim": [128]}, "value_dim"),
        (RWKV7, {"decay_low_rank_dim": "24"}, "decay_low_rank_dim"),
        (RWKV7, {"intermediate_size": None, "hidden_ratio": 1e29}, "intermediate_size"),
        (RWKV7, {"hidden_ratio": [4]}, "hidden_ratio"),
        (RWKV7, {"attn": {"layers": [1], "num_heads": 2}}, "attn"),
        (RWKV7, {"norm_first": False}, "norm_first"),
        (RWKV7, {"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_configs_that_lie_are_refused(
    known: dict[str, Any], changed: dict[str, Any], told: str
) -> None:
    config = {**known, **changed}
    with pytest.raises(CheckpointError, match=told):
        family(config).read_config(config)
