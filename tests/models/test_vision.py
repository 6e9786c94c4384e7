"""Models that take images give what transformers gave, however a prompt is cut, alone or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny
import tiny_vision as vision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config_fuzz import VALUES, built
from test_family_schemes import CLOSE as NEAR
from test_family_schemes import QUANTIZED, on_disk

from sterna.base.errors import CheckpointError, RequestError, UnsupportedModel
from sterna.models import family
from sterna.models.params import plain_name, stored_weights
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import scheme
from sterna.runtime.cpu import CpuExecutable
from sterna.runtime.executable import Executable, StepInput

CLOSE = 1e-4  # float32 against float32 of another order
CONTEXT = 64
PAGES = range(CONTEXT // 16)
SIZES = {"context_window_size": CONTEXT, "prefill_chunk_size": 40, "max_batch_size": 2}


def weights(variant: str) -> tiny.Weights:
    """What a checkpoint of the variant holds, by the names and shapes that the family wants."""
    found = {}
    for weight in stored_weights(vision.VARIANTS[variant], scheme("q0f32")):
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True):
            found[name] = tiny.draw(name, shape)
    return found


def load(root: Path, variant: str, tensors: tiny.Weights, name: str) -> CpuExecutable:
    made = compiled.build_drawn(root, vision.VARIANTS[variant], tensors, name, **SIZES)
    return made.load(num_pages=3 * len(PAGES))


@pytest.fixture(scope="module", params=vision.VARIANTS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, CpuExecutable]]:
    variant = request.param
    loaded = load(tmp_path_factory.mktemp(variant), variant, weights(variant), "q0f32")
    yield variant, loaded
    loaded.close()


def seen(model: Executable) -> list[compiled.Logits]:
    return [model.see(vision.patches(pixels)) for pixels in vision.images()]


def with_rows(
    batch: StepInput, starts: Sequence[tuple[int, int]], rows: Sequence[compiled.Logits]
) -> StepInput:
    """The batch with the images' rows; `starts` are (place in the step, row of the image)."""
    given = np.zeros((len(batch.tokens), rows[0].shape[1]), np.float32)
    where = np.zeros(len(batch.tokens), np.int32)
    for (at, first), own in zip(starts, rows, strict=True):
        for i in range(vision.TOKENS):
            place = at + i - first
            if 0 <= place < len(where):
                given[place], where[place] = own[i], 1
    return replace(batch, given=given, is_given=where)


def logits(model: Executable, chunk: int, pages: Sequence[int] = PAGES) -> compiled.Logits:
    """At all positions of the prompt with both images."""
    rows, size = seen(model), model.manifest.kv_cache.page_size
    found = []
    for start in range(0, len(vision.PROMPT), chunk):
        tokens = vision.PROMPT[start : start + chunk]
        for first in range(0, len(tokens), compiled.ROWS):
            wanted = range(first, min(first + compiled.ROWS, len(tokens)))
            batch = compiled.step_input([compiled.Part(tokens, start, pages)], size, wanted)
            batch = with_rows(batch, [(p - start, 0) for p in vision.PLACES], rows)
            found.append(model.step(batch).copy())
    return np.concatenate(found)


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_names_and_shapes_are_those_of_transformers(variant: str) -> None:
    assert tiny.checksum(weights(variant)) == vision.golden(variant).checksum


def test_rows_of_an_image(model: tuple[str, CpuExecutable]) -> None:
    variant, executable = model
    first = seen(executable)[0]
    assert np.abs(first - vision.golden(variant).rows).max() < CLOSE
    again = seen(executable)  # another image was looked at in between
    assert again[0].tobytes() == first.tobytes() != again[1].tobytes()


@pytest.mark.parametrize("chunk", [40, 13, 1])
def test_logits(model: tuple[str, CpuExecutable], chunk: int) -> None:
    variant, executable = model
    found = logits(executable, chunk)
    gap = np.abs(found[list(vision.POSITIONS)] - vision.golden(variant).logits).max()
    assert gap < CLOSE
    assert found.tobytes() == logits(executable, len(PAGES) * 5).tobytes()


def test_an_image_beside_a_text_changes_neither(model: tuple[str, CpuExecutable]) -> None:
    _, executable = model
    rows, size, count = seen(executable), executable.manifest.kv_cache.page_size, len(PAGES)
    own = compiled.Part(vision.PROMPT[:22], 0, list(PAGES))
    text = compiled.Part((1, 5, 7, 11, 40, 2, 9), 0, [p + count for p in PAGES])
    size_of = [(vision.PLACES[0], 0)]
    alone = [
        executable.step(with_rows(compiled.step_input([own], size), size_of, rows[:1])).copy(),
        executable.step(compiled.step_input([text], size)).copy(),
    ]
    both = compiled.step_input([text, own], size)
    shifted = [(vision.PLACES[0] + len(text.tokens), 0)]
    found = executable.step(with_rows(both, shifted, rows[:1]))
    assert found[1].tobytes() == alone[0][0].tobytes()
    assert found[0].tobytes() == alone[1][0].tobytes()


def test_without_images_it_is_the_model_of_text(model: tuple[str, CpuExecutable]) -> None:
    """The same tokens with rows that are their embeddings' would be: one program for both."""
    _, executable = model
    size = executable.manifest.kv_cache.page_size
    batch = compiled.step_input([compiled.Part((1, 5, 7, 11, 40, 2, 9), 0, list(PAGES))], size)
    plain = executable.step(batch).copy()
    nothing = replace(batch, given=np.ones((7, 48), np.float32), is_given=np.zeros(7, np.int32))
    assert executable.step(nothing).tobytes() == plain.tobytes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"given": None}, "given rows of a step"),
        ({"given": np.ones((7, 47), np.float32)}, r"float32\[7, 48\]"),
        ({"given": np.ones((7, 48), np.float64)}, r"float32\[7, 48\]"),
        ({"is_given": np.ones(6, np.int32)}, r"is_given of a step must be int32\[7\]"),
    ],
)
def test_given_rows_of_a_wrong_form(
    model: tuple[str, CpuExecutable], change: dict[str, object], why: str
) -> None:
    _, executable = model
    part = compiled.Part((1, 5, 7, 11, 40, 2, 9), 0, list(PAGES))
    batch = compiled.step_input([part], executable.manifest.kv_cache.page_size)
    good = {"given": np.ones((7, 48), np.float32), "is_given": np.ones(7, np.int32)}
    with pytest.raises(RequestError, match=why):
        executable.step(replace(batch, **{**good, **change}))


@pytest.mark.parametrize("shape", [(15, 75), (16, 74), (16,), (0, 75)])
def test_patches_of_a_wrong_form(model: tuple[str, CpuExecutable], shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"an image must be float32\[16, 75\]"):
        model[1].see(np.zeros(shape, np.float32))


def restored(config: Mapping[str, object], name: str) -> tiny.Weights:
    """The weights that a reader of the quantized folder finds, as a checkpoint would hold them."""
    found = {}
    for weight in stored_weights(config, scheme(name)):
        for source, shape in zip(weight.sources, weight.source_shapes, strict=True):
            values = tiny.draw(source, shape)
            parts = quantize(values, weight.scheme, name=source)
            parts = {part: on_disk(array) for part, array in parts.items()}
            found[source] = dequantize(parts, weight.scheme, shape).astype(np.float32)
    return found


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_scheme_leaves_what_looks_at_images_as_it_is(name: str) -> None:
    stored = stored_weights(vision.LLAVA, scheme(name))
    seen = [w for w in stored if w.name.startswith(("vision_tower.", "multi_modal_projector."))]
    assert {w.scheme.name for w in seen} == {f"q0{scheme(name).compute}"}
    read = [w for w in stored if w.kind == "linear"]
    assert {w.scheme.name for w in read} == {name}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4f16_1", "q4bf16_1"])
def test_quantized_logits_are_those_of_the_restored_weights(name: str, tmp_path: Path) -> None:
    found = []
    for part, tensors, own in (
        ("packed", weights("llava"), name),
        ("plain", restored(vision.LLAVA, name), "q0f32"),
    ):
        executable = load(tmp_path / part, "llava", tensors, own)
        kinds = {p.dtype for p in executable.manifest.params if "vision" in p.name}
        assert kinds == {scheme(own).compute.name}  # what looks at images is never quantized
        found.append(logits(executable, 40))
        executable.close()
    close = NEAR[scheme(name).compute.name]
    assert np.abs(found[0] - found[1]).max() < close * found[1].std()


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"vision_config": None}, CheckpointError, "no vision_config"),
        ({"text_config": "llama"}, CheckpointError, "no text_config"),
        ({"vision_feature_layer": 4}, CheckpointError, "from -3 to 3"),
        ({"vision_feature_layer": [-2, -5]}, CheckpointError, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "pooled"}, UnsupportedModel, "'default' or 'full'"),
        ({"image_token_index": 64}, CheckpointError, "not one of the 64 tokens"),
        ({"architectures": ["LlavaNextForConditionalGeneration"]}, UnsupportedModel, "LlavaNext"),
        ({"image_grid_pinpoints": [[336, 672]]}, UnsupportedModel, "image_grid_pinpoints"),
        ({"text_config": {"model_type": "mistral"}}, UnsupportedModel, "model_type 'mistral'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, UnsupportedModel, "siglip"),
        ({"vision_config": {"hidden_size": 30}}, CheckpointError, "do not divide"),
        ({"vision_config": {"patch_size": 500}}, CheckpointError, "more than its image_size"),
        ({"vision_config": {"num_hidden_layers": 10**9}}, CheckpointError, "num_hidden_layers"),
        ({"vision_config": {"attention_type": "x"}}, UnsupportedModel, "attention_type"),
    ],
)
def test_configs_that_are_refused(
    change: dict[str, object], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        family(vision.LLAVA).read_config({**vision.LLAVA, **change})


def test_the_published_config_builds_with_the_checkpoints_names() -> None:
    """config.json of llava-1.5-7b-hf, which leaves out what is usual."""
    config = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    shapes = {
        name: shape
        for weight in stored_weights(config, scheme("q4f16_1"))
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True)
    }
    tower = "vision_tower.vision_model"
    assert shapes[f"{tower}.embeddings.patch_embedding.weight"] == (1024, 3, 14, 14)
    assert shapes[f"{tower}.embeddings.position_embedding.weight"] == (577, 1024)
    assert shapes[f"{tower}.pre_layrnorm.bias"] == (1024,)
    assert shapes[f"{tower}.encoder.layers.22.self_attn.out_proj.weight"] == (1024, 1024)
    assert f"{tower}.encoder.layers.23.mlp.fc1.weight" not in shapes
    assert shapes["multi_modal_projector.linear_1.weight"] == (4096, 1024)
    assert shapes["language_model.model.layers.31.mlp.down_proj.weight"] == (4096, 11008)
    assert shapes["language_model.lm_head.weight"] == (32064, 4096)


@pytest.mark.parametrize("form", ["transformers 5", "in memory"])
def test_files_that_name_tensors_otherwise(form: str) -> None:
    tower = "vision_tower.vision_model."
    begins = {tower: "vision_tower."}
    if form == "in memory":
        begins = {
            "language_model.model.": "model.language_model.",
            "language_model.lm_head.": "lm_head.",
            tower: f"model.{tower}",
            "multi_modal_projector.": "model.multi_modal_projector.",
        }
    for name in weights("llava"):
        begin = next((b for b in begins if name.startswith(b)), "")
        other = begins.get(begin, "") + name.removeprefix(begin)
        assert plain_name(vision.LLAVA, other) == name
        assert plain_name(vision.LLAVA, name) == name


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_stands_in_a_config(data: st.DataObject) -> None:
    config = {**vision.LLAVA, "vision_feature_layer": -2}
    at = data.draw(st.sampled_from(["", "text_config", "vision_config"]))
    part = dict(config[at]) if at else config  # type: ignore[call-overload]
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    assert built({**config, at: part} if at else part)
