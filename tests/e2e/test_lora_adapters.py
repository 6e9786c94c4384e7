"""LoRA adapters beside a compiled model: each row its own, and rows without keep the model's bits.

The reference is a float64 forward pass over W + scale * B A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llama_reference
import numpy as np
import pytest
from adapter_folders import merged, write_adapter
from compiled import Compiled, Logits, Part, Tiny, compile_model, greedy, ints, step_input, tiny
from test_schemes import CLOSE, whole_weights

from sterna.base.artifact import CompileOptions
from sterna.base.errors import (
    ArtifactError,
    CheckpointError,
    Error,
    RequestError,
    ShapeMismatch,
    UnexpectedTensor,
    UnsafeFile,
    UsageError,
)
from sterna.base.target import host_target
from sterna.checkpoint.lora import Adapter, adapter_tensors, open_adapter, room_for
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.checkpoint.safetensors import write_safetensors
from sterna.convert import ConvertOptions, convert_weight, gen_config
from sterna.engine.options import EngineOptions
from sterna.local import Engine
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq
from sterna.quantize.scheme import SCHEMES
from sterna.runtime import cpu
from sterna.runtime.library import read_manifest

CONFIG = {
    **tiny.VARIANTS["llama2-gqa"],
    "attention_bias": True,
    "intermediate_size": 172,
    "max_position_embeddings": 256,
    "vocab_size": 157,
}
LAYERS = range(int(CONFIG["num_hidden_layers"]))
EVERY = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
SMALL = {"context_window_size": 128, "prefill_chunk_size": 64, "max_batch_size": 4}
SCHEMES_HERE = ("q0f32", "q4f16_1", pytest.param("q8f16_1", marks=pytest.mark.slow))
PROMPTS = [
    [3 + (7 * s + i * i) % 150 for i in range(length)] for s, length in enumerate((20, 9, 33))
]
STEPS = 3


@dataclass(frozen=True)
class Adapted:
    """A model, and a library of it with room for three adapters, of which two are loaded."""

    scheme: str
    plain: Compiled
    library: Path
    adapters: tuple[Adapter, Adapter]

    def load(self, threads: int = 1) -> cpu.CpuExecutable:
        manifest = read_manifest(self.library)
        factors = adapter_tensors(self.adapters, manifest.adapters, manifest.params)
        tensors = {**read_mlc_folder(self.plain.folder).tensors, **factors}
        return cpu.load(self.library, tensors, num_pages=64, threads=threads)


@pytest.fixture(scope="module", params=SCHEMES_HERE)
def adapted(
    request: pytest.FixtureRequest, tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory
) -> Adapted:
    root = tmp_path_factory.mktemp("adapters")
    first = write_adapter(root / "first", CONFIG, LAYERS, EVERY, rank=5)
    second = write_adapter(
        root / "second", CONFIG, LAYERS[1:], EVERY[1:4], rank=3, seed=2, use_rslora=True
    )
    plain = tiny_model(CONFIG, request.param, **SMALL)
    room = room_for([first, second, second])
    assert room is not None
    library = root / f"adapted{host_target().suffix}"
    options = CompileOptions(adapters=room, **SMALL)
    compile_model(plain.folder, host_target(), library, options=options)
    return Adapted(request.param, plain, library, (first, second))


@pytest.fixture(scope="module")
def model(adapted: Adapted) -> Iterator[cpu.CpuExecutable]:
    loaded = adapted.load()
    yield loaded
    loaded.close()


def run(model: cpu.CpuExecutable, chosen: Sequence[int], adapters: Sequence[int] | None) -> Logits:
    """Logits [steps, sequences, vocabulary]: the prompts in one step, then tokens one by one."""
    parts = [Part(PROMPTS[i], 0, range(i * 8, i * 8 + 8)) for i in chosen]
    found = []
    for step in range(STEPS + 1):
        batch = step_input(parts, 16)
        if adapters is not None:
            batch = replace(batch, adapters=ints(adapters))
        found.append(model.step(batch).copy())
        parts = [Part([5 + step], p.start + len(p.tokens), p.pages) for p in parts]
    return np.stack(found)


def test_rows_without_an_adapter_keep_the_models_bits(
    adapted: Adapted, model: cpu.CpuExecutable
) -> None:
    plain = adapted.plain.load()
    wanted = run(plain, [0, 1, 2], None)
    plain.close()
    assert run(model, [0, 1, 2], None).tobytes() == wanted.tobytes()
    assert run(model, [0, 1, 2], [-1, -1, -1]).tobytes() == wanted.tobytes()
    assert run(model, [0, 1, 2], [0, -1, 1])[:, 1].tobytes() == wanted[:, 1].tobytes()


@pytest.mark.parametrize("adapters", [(0, -1, 1), (1, 0, 0), (-1, 1, 0), (2, 0, 1)])
def test_rows_do_not_depend_on_their_neighbours(
    adapted: Adapted, model: cpu.CpuExecutable, adapters: tuple[int, ...]
) -> None:
    together = run(model, [0, 1, 2], adapters)
    for i, adapter in enumerate(adapters):
        alone = run(model, [i], [adapter])
        assert alone[:, 0].tobytes() == together[:, i].tobytes(), f"adapter {adapter}"
    threads = adapted.load(threads=3)
    assert run(threads, [0, 1, 2], adapters).tobytes() == together.tobytes()
    threads.close()


def test_an_unused_place_is_the_model_itself(adapted: Adapted, model: cpu.CpuExecutable) -> None:
    base = run(model, [0], [-1])
    np.testing.assert_array_equal(run(model, [0], [2]), base)
    tensors = read_mlc_folder(adapted.plain.folder).tensors
    empty = cpu.load(adapted.library, tensors, num_pages=64, threads=1)
    np.testing.assert_array_equal(run(empty, [0], [1]), base)
    empty.close()


@pytest.mark.parametrize("number", [0, 1])
def test_logits_are_those_of_the_merged_weights(
    adapted: Adapted, model: cpu.CpuExecutable, number: int
) -> None:
    """As near as the model itself comes to its own weights' logits on the same prompts.

    In 16 bits that is decided by keys and values that f32 and f64 round to different neighbours.
    """
    kept_as = SCHEMES[adapted.scheme].compute.numpy
    tensors = read_mlc_folder(adapted.plain.folder).tensors
    plain = whole_weights(CONFIG, adapted.scheme, {n: ref.read() for n, ref in tensors.items()})
    weights = merged(plain, adapted.adapters[number], kept_as)
    frequencies = inv_freq(rope_options(CONFIG), tiny.head_dim(CONFIG))
    gaps, own_gaps, changes = [], [], []
    for i, prompt in enumerate(PROMPTS):
        tokens, rows = (*prompt, *range(5, 5 + STEPS)), slice(len(prompt) - 1, None)
        wanted, base = (
            llama_reference.forward(CONFIG, w, tokens, frequencies, kept_as)[rows]
            for w in (weights, plain)
        )
        gaps.append(np.abs(run(model, [i], [number])[:, 0] - wanted).max())
        own_gaps.append(np.abs(run(model, [i], [-1])[:, 0] - base).max())
        changes.append(np.abs(wanted - base).max())
    assert max(gaps) < 3 * max(own_gaps)
    assert max(own_gaps) < 2 * CLOSE[SCHEMES[adapted.scheme].compute]
    assert min(changes) > 100 * max(gaps)  # the bound tells them apart


def test_as_merged_at_conversion(
    adapted: Adapted, model: cpu.CpuExecutable, tmp_path: Path
) -> None:
    """Without quantization, where merging loses nothing but float32's last bits."""
    if adapted.scheme != "q0f32":
        pytest.skip("merged weights are quantized anew, and then others")
    source = tmp_path / "source"
    tiny.write_folder(source, CONFIG, tiny.weights(CONFIG))
    (source / "tokenizer.json").write_bytes((adapted.plain.folder / "tokenizer.json").read_bytes())
    output = tmp_path / "merged"
    options = ConvertOptions(lora=adapted.adapters[0].folder)
    convert_weight(source, output, quantization="q0f32", options=options)
    gen_config(source, output, quantization="q0f32")
    library = output / f"model{host_target().suffix}"
    compile_model(output, host_target(), library, options=CompileOptions(**SMALL))
    loaded = Compiled(output, library).load()
    np.testing.assert_allclose(run(loaded, [2], None), run(model, [2], [0]), atol=1e-5)
    loaded.close()


@pytest.mark.parametrize("adapters", [[3, 0, 0], [-2, 0, 0], [0, 0]])
def test_steps_that_name_no_adapter(model: cpu.CpuExecutable, adapters: list[int]) -> None:
    with pytest.raises(RequestError, match="adapters"):
        run(model, [0, 1, 2], adapters)


def test_a_library_without_room(adapted: Adapted) -> None:
    plain = adapted.plain.load()
    with pytest.raises(RequestError, match="room for 0"):
        run(plain, [0], [0])
    plain.close()


def load_with(adapted: Adapted, *adapters: Adapter) -> None:
    manifest = read_manifest(adapted.library)
    for tensor in adapter_tensors(adapters, manifest.adapters, manifest.params).values():
        tensor.read()


Other = tuple[type[Error], str]
WRONG: dict[str, tuple[dict[str, Any], Other]] = {
    "too many layers": (
        {"config": {**CONFIG, "num_hidden_layers": 9}, "layers": [8]},
        (UnexpectedTensor, "layers.8"),
    ),
    "another width": (
        {"config": {**CONFIG, "hidden_size": 32, "num_attention_heads": 4}},
        (ShapeMismatch, "another model"),
    ),
    "a larger rank": ({"rank": 6}, (ArtifactError, "ranks up to 6")),
}


@pytest.mark.parametrize("title", WRONG)
def test_adapters_of_other_models(adapted: Adapted, tmp_path: Path, title: str) -> None:
    changes, (kind, words) = WRONG[title]
    given = {"config": CONFIG, "layers": [0], "modules": ["mlp.up_proj"], **changes}
    adapter = write_adapter(tmp_path / "other", **given)
    with pytest.raises(kind, match=words) as caught:
        load_with(adapted, adapter)
    assert "\n" not in str(caught.value)


def test_too_many_adapters_or_none_expected(adapted: Adapted) -> None:
    with pytest.raises(ArtifactError, match="room for 3"):
        load_with(adapted, *[adapted.adapters[0]] * 4)
    with pytest.raises(ArtifactError, match="without room"):
        adapter_tensors(adapted.adapters, None, ())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_factors_that_are_no_numbers(adapted: Adapted, tmp_path: Path, value: float) -> None:
    adapter = write_adapter(tmp_path / "bad", CONFIG, [0], ["mlp.up_proj"])
    if adapted.scheme == "q0f32" and np.isfinite(value):
        return  # f32 holds it
    tensors = {ref.name: ref.read() for p in adapter.pairs.values() for ref in (p.a, p.b)}
    next(iter(tensors.values()))[1, 2] = value
    write_safetensors(tmp_path / "bad" / "adapter_model.safetensors", tensors)
    with pytest.raises(UnsafeFile, match="not finite"):
        load_with(adapted, open_adapter(tmp_path / "bad"))


def test_modules_that_no_layer_has(adapted: Adapted, tmp_path: Path) -> None:
    tensors = {
        "base_model.model.lm_head.lora_A.weight": np.ones((2, 64), np.float32),
        "base_model.model.lm_head.lora_B.weight": np.ones((157, 2), np.float32),
    }
    adapter = write_adapter(tmp_path / "head", CONFIG, [0], ["mlp.up_proj"])
    write_safetensors(adapter.folder / "adapter_model.safetensors", tensors)
    options = CompileOptions(adapters=room_for([open_adapter(adapter.folder)]))
    with pytest.raises(UsageError, match=r"lm_head.*merged"):
        compile_model(adapted.plain.folder, host_target(), tmp_path / "l.so", options=options)


def test_the_engine_makes_what_it_lacks(
    adapted: Adapted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names to folders; answers of one batch are those of the executable by itself."""
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path))
    folders = {"first": str(adapted.adapters[0].folder), "second": str(adapted.adapters[1].folder)}
    options = EngineOptions(lora=folders, context_window_size=128)
    with Engine(model=adapted.plain.folder, options=options) as engine:
        assert engine.adapters == ("first", "second")
        asked = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 1}
        names = [None, "first", "second", "first"]
        streams = [
            engine.completions.create(
                prompt=PROMPTS[0], model=name, stream=True, return_token_ids=True, **asked
            )
            for name in names
        ]
        found = [[choice for chunk in s for choice in chunk.choices] for s in streams]
        with pytest.raises(RequestError, match="'first', 'second'"):
            engine.completions.create(prompt=PROMPTS[0], model="third")
    plain = adapted.plain.load()
    tokens = [token for choice in found[0] for token in choice.token_ids]
    assert tokens == greedy(plain, PROMPTS[0], 8)
    plain.close()
    likely = [[c.logprobs.token_logprobs for c in choices if c.logprobs] for choices in found]
    assert likely[1] == likely[3]
    assert len({repr(one) for one in likely}) == 3
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        Engine(model=adapted.plain.folder, options=EngineOptions(lora={"no": str(tmp_path)}))
