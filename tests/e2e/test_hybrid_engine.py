"""A model of attention and recurrent layers in the engine: slots and pages, each on its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiled import Compiled, Part, build_drawn, ints, step_input

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny_families
from test_family_logits import weights

from sterna.base.artifact import Launch, Repeat
from sterna.base.dtype import F32
from sterna.base.errors import CheckpointError, RequestError
from sterna.cli.main import main
from sterna.convert.forward import all_logits
from sterna.engine.engine import Engine
from sterna.engine.limits import draft_limits, plan
from sterna.engine.options import EngineOptions
from sterna.models import build, expert_weights, family
from sterna.nn.decoder import Limits, trace_causal_lm
from sterna.passes.pipeline import graph_passes
from sterna.passes.pipeline import run as run_passes
from sterna.quantize.scheme import scheme
from sterna.runtime.executable import StepInput
from sterna.text.tokenizer import Tokenizer

GRANITE, QWEN = (tiny_families.VARIANTS[v] for v in ("granitemoehybrid", "qwen3-next"))
# The convolution's last inputs, and a row of 8 for each channel of values.
ELEMENTS = {"granitemoehybrid": 3 * 128 + 96 * 8, "qwen3-next": 3 * 80 + 48 * 8}
ATTENDING = {"granitemoehybrid": 2, "qwen3-next": 1}  # layers
SIZES = {"context_window_size": 128, "prefill_chunk_size": 32, "max_batch_size": 4}
ASKED = {"max_tokens": 16, "ignore_eos": True, "seed": 5, "temperature": 1.0,
         "return_token_ids": True}  # fmt: skip
PROMPTS = [[3 + (5 * s + i * i) % 60 for i in range(7 + 9 * s)] for s in range(6)]


@pytest.fixture(
    scope="module",
    params=["granitemoehybrid", pytest.param("qwen3-next", marks=pytest.mark.slow)],
)
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def compiled(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root, config = tmp_path_factory.mktemp(variant), tiny_families.VARIANTS[variant]
    return build_drawn(root, config, weights(variant), "q4f16_1", **SIZES)


def engine(made: Compiled, num_pages: int) -> Engine:
    return Engine.from_parts(
        made.load(threads=2, num_pages=num_pages),
        Tokenizer.load(made.folder),
        None,
        "tiny",
        options=EngineOptions(mode="server"),
    )


def ask(model: Engine, prompts: list[list[int]], **more: int) -> list[Any]:
    found = model.completions.create(prompt=prompts, **(ASKED | more))
    model._core.call(model._core.scheduler.check)
    return [choice.token_ids for choice in found.choices]


@pytest.fixture(scope="module")
def alone(compiled: Compiled) -> Iterator[list[Any]]:
    with engine(compiled, 8) as model:
        yield [ask(model, [prompt])[0] for prompt in PROMPTS]


@pytest.mark.parametrize("pages", [9, 32])
def test_together_and_in_turns(compiled: Compiled, alone: list[Any], pages: int) -> None:
    """More sequences than slots, and with nine pages more than pages."""
    with engine(compiled, pages) as model:
        assert ask(model, PROMPTS) == alone
        assert model.metrics()["prefix_hits"] == 0
        assert ask(model, PROMPTS[::-1]) == alone[::-1]


def test_preempted_sequences_are_computed_again(compiled: Compiled) -> None:
    """From a state of zero, in whichever slot is free then."""
    prompts, long = [PROMPTS[0][i:] for i in range(4)], {"max_tokens": 48}
    with engine(compiled, 8) as model:
        alone = [ask(model, [prompt], **long)[0] for prompt in prompts]
        assert model._core.scheduler.tally.preemptions == 0
        assert ask(model, prompts, **long) == alone
        assert model._core.scheduler.tally.preemptions > 0


def test_a_slot_is_the_sequences_own(compiled: Compiled) -> None:
    """States follow the slot that a step names, and not a sequence's place in it."""
    model = compiled.load(num_pages=8)
    first, second = Part(PROMPTS[1], 0, [0, 1]), Part(PROMPTS[0], 0, [2])
    rest = [Part([5], len(PROMPTS[1]), [0, 1]), Part([6], len(PROMPTS[0]), [2])]

    def run(parts: list[Part], slots: list[int]) -> Any:
        given = step_input(parts, 16)
        fields = {name: getattr(given, name) for name in StepInput.__slots__}
        return model.step(StepInput(**{**fields, "slots": ints(slots)})).copy()

    run([first, second], [3, 1])
    wanted = run(rest, [3, 1])
    run([first], [0])
    run([second], [2])
    np.testing.assert_array_equal(run(rest[::-1], [2, 0]), wanted[::-1])
    for slots, told in (([0, 0], "share a slot"), ([0, 4], "has 4"), ([-1, 0], "has 4"),
                        ([0], "one a sequence")):  # fmt: skip
        with pytest.raises(RequestError, match=told):
            run(rest, slots)
    model.close()


def test_caches_have_the_layers_that_use_them(variant: str, compiled: Compiled) -> None:
    """M M A M A: attention is layers 2 and 4, and rows 0 and 1 of the cache; and R R A R."""
    attending = ATTENDING[variant]
    manifest = compiled.load(num_pages=1).manifest
    states = manifest.states
    assert states is not None
    assert (states.slots, states.layers, states.elements) == (4, 3, ELEMENTS[variant])
    assert manifest.kv_cache.layers == attending
    found: dict[str, set[int]] = {"kv_cache": set(), "states": set()}
    for step in manifest.entry("decode").steps:
        assert isinstance(step, Launch | Repeat)
        for launch in step.body if isinstance(step, Repeat) else ():
            for name in found.keys() & set(launch.args):
                row, stride = launch.row, launch.row_stride
                if row is None:
                    row, stride = step.first + launch.layer, step.stride
                found[name] |= {row + stride * i for i in range(step.count)}
    assert found == {"kv_cache": set(range(attending)), "states": {0, 1, 2}}


def test_inspection_speaks_of_both(
    variant: str, compiled: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(compiled.library)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"3 layers of {ELEMENTS[variant]} numbers, f32, for each sequence" in shown
    heads = {
        "granitemoehybrid": "2 layers of 2 heads of 12",
        "qwen3-next": "1 layers of 2 heads of 16",
    }
    assert heads[variant] in shown


def test_what_would_go_back_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    manifest = compiled.load(num_pages=1).manifest
    assert not plan(EngineOptions(), manifest).prefix_cache
    for name, value in (("speculative", "ngram"), ("prefix_cache_dir", str(tmp_path))):
        with pytest.raises(RequestError, match=f"{name} was asked for, but the model is recurrent"):
            plan(EngineOptions(**{name: value}), manifest)
    with pytest.raises(RequestError, match="the draft model is recurrent"):
        draft_limits(plan(EngineOptions(), manifest), manifest, 4)


@pytest.mark.parametrize("name", ELEMENTS)
def test_the_forward_pass_in_numpy_is_that_of_transformers(name: str) -> None:
    drawn, prompt, config = weights(name), tiny_families.PROMPT, tiny_families.VARIANTS[name]
    model = family(config).build(config, F32)
    experts = expert_weights(config)

    def read(path: str, _: object) -> Any:
        return np.concatenate([drawn[p] for p in experts.get(path, (path,))])

    found = all_logits(model, [prompt[:9], prompt], read)
    wanted = tiny_families.golden(name)[0]
    assert np.abs(found[9:][list(tiny_families.POSITIONS)] - wanted).max() < 1e-4


# As published, but for keys that say nothing of sizes; and the parameters that transformers counts.
SIZES_OF = {
    "Qwen3-Next 80B-A3B": (QWEN, 79_674_391_296, {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16, "head_dim": 256,
        "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "num_experts": 512,
        "num_experts_per_tok": 10, "moe_intermediate_size": 512, "vocab_size": 151936,
        "shared_expert_intermediate_size": 512, "max_position_embeddings": 262144,
    }),
    "Granite 4.0 H Tiny": (GRANITE, 6_939_037_248, {
        "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 12,
        "num_key_value_heads": 4, "intermediate_size": 512, "shared_intermediate_size": 1024,
        "num_local_experts": 64, "num_experts_per_tok": 6, "mamba_n_heads": 48, "mamba_d_head": 64,
        "mamba_d_state": 128, "mamba_n_groups": 1, "vocab_size": 100352,
        "tie_word_embeddings": True, "layer_types": (["mamba"] * 9 + ["attention"]) * 4,
    }),
    "Granite 4.0 H Small": (GRANITE, 32_207_337_984, {
        "hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 768, "shared_intermediate_size": 1536,
        "num_local_experts": 72, "num_experts_per_tok": 10, "mamba_n_heads": 128,
        "mamba_d_head": 64, "mamba_d_state": 128, "mamba_n_groups": 1, "vocab_size": 100352,
        "tie_word_embeddings": True, "layer_types": (["mamba"] * 9 + ["attention"]) * 4,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES_OF)
def test_published_sizes(name: str) -> None:
    known, count, sizes = SIZES_OF[name]
    config = known | sizes
    model = family(config).build(config, F32)
    assert sum(math.prod(p.shape) for _, p in model.parameters()) == count
    module = trace_causal_lm(build(config, scheme("q4f16_1")), Limits(8, 4, 16))
    run_passes(module, graph_passes(family(config).FUSED, code_bits=None))


@pytest.mark.parametrize(
    ("known", "changed", "told"),
    [
        (GRANITE, {"mamba_n_heads": 5}, "heads must fill the width"),
        (GRANITE, {"mamba_n_groups": 4}, "groups divide the heads"),
        (GRANITE, {"num_local_experts": 8}, "num_experts_per_tok"),
        (GRANITE, {"num_local_experts": -8}, "num_local_experts"),
        (GRANITE, {"layer_types": ["mamba"] * 5}, "5 of 5 layers"),
        (GRANITE, {"layer_types": ["attention"] * 5}, "0 of 5 layers"),
        (GRANITE, {"layer_types": ["mamba"]}, "kind of each of the 5 layers"),
        (GRANITE, {"layer_types": ["mamba", "attention", "x", "mamba", "mamba"]}, "'x'"),
        (GRANITE, {"position_embedding_type": "alibi"}, "position_embedding_type"),
        (GRANITE, {"time_step_limit": [0.0, 0.5]}, "time_step_limit"),
        (QWEN, {"linear_num_value_heads": 5}, "5 linear value heads and 2 linear key heads"),
        (QWEN, {"linear_key_head_dim": 0}, "linear_key_head_dim"),
        (QWEN, {"linear_conv_kernel_dim": 10**9}, "linear_conv_kernel_dim"),
        (QWEN, {"full_attention_interval": 1}, "0 of 4 layers"),
        (QWEN, {"full_attention_interval": 9}, "4 of 4 layers"),
        (QWEN, {"layer_types": ["linear_attention", "full_attention", "mamba", "x"]}, "'mamba'"),
        (QWEN, {"hidden_act": "gelu"}, "hidden_act"),
        (QWEN, {"mlp_only_layers": 3}, "mlp_only_layers"),
        (QWEN, {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ],
)
def test_configs_that_lie_are_refused(
    known: dict[str, Any], changed: dict[str, Any], told: str
) -> None:
    config = {**known, **changed}
    with pytest.raises(CheckpointError, match=told):
        family(config).build(config, F32)
