"""A recurrent model in the engine: states are kept apart, given back, and never go back."""

from __future__ import annotations

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

from sterna.base.dtype import F32
from sterna.base.errors import CheckpointError, RequestError, UsageError
from sterna.base.target import host_target, parse_target
from sterna.cli.main import main
from sterna.compiler import CompileOptions, compile_model
from sterna.convert.forward import all_logits
from sterna.engine.engine import Engine
from sterna.engine.limits import draft_limits, plan
from sterna.engine.options import EngineOptions
from sterna.models import family
from sterna.text.tokenizer import Tokenizer
from sterna.web_folder import compile_folder

CONFIG = tiny_families.VARIANTS["mamba2"]
SIZES = {"context_window_size": 128, "prefill_chunk_size": 32, "max_batch_size": 4}
ASKED = {"max_tokens": 16, "ignore_eos": True, "seed": 5, "temperature": 1.0,
         "return_token_ids": True}  # fmt: skip
PROMPTS = [[3 + (5 * s + i * i) % 60 for i in range(7 + 9 * s)] for s in range(6)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("mamba2")
    published = {**CONFIG, "time_step_limit": [0.0, float("inf")]}  # in JSON: Infinity
    return build_drawn(root, published, weights("mamba2"), "q4f16_1", **SIZES)


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
    compiled: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    elements = 3 * 128 + 96 * 8  # the convolution's last inputs, and a row of 8 for each channel
    assert main(["inspect", str(compiled.library)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"2 layers of {elements} numbers, f32, for each sequence" in shown
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


def test_the_forward_pass_in_numpy_is_that_of_transformers() -> None:
    """What receipts and calibration compute: two documents, each from a state of zero."""
    drawn, prompt = weights("mamba2"), tiny_families.PROMPT
    model = family(CONFIG).build(CONFIG, F32)
    found = all_logits(model, [prompt[:9], prompt], lambda name, _: drawn[name])
    wanted = tiny_families.golden("mamba2")[0]
    assert np.abs(found[9:][list(tiny_families.POSITIONS)] - wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_heads": 5}, "heads must fill the width"),
        ({"n_groups": 4}, "groups divide the heads"),
        ({"state_size": -1}, "state_size"),
        ({"conv_kernel": 10**9}, "conv_kernel"),
        ({"time_step_limit": [0.0, 0.5]}, "time_step_limit"),
        ({"rms_norm": False}, "rms_norm"),
    ],
)
def test_configs_that_lie_are_refused(changed: dict[str, Any], told: str) -> None:
    config = {**CONFIG, **changed}
    with pytest.raises(CheckpointError, match=told):
        family(config).read_config(config)
