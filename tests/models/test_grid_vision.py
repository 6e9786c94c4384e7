"""Models that take images of any size give what transformers gave, however a prompt is cut."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny
import tiny_grid_vision as vision

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from test_config_fuzz import VALUES, built
from test_family_schemes import CLOSE as NEAR
from test_family_schemes import QUANTIZED
from test_vision import restored

from sterna.base.errors import CheckpointError, RequestError, UnsupportedModel
from sterna.convert.forward import all_logits
from sterna.engine.pictures import Patches, Picture, on_axes
from sterna.models import build, family
from sterna.models.params import plain_name, stored_weights
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
    pairs = zip(vision.images(), vision.GRIDS, strict=True)
    return [model.see(patches, grid) for patches, grid in pairs]


def pictures() -> tuple[Picture, ...]:
    """Those of the prompt, in the engine's own words."""
    shown = zip(vision.PLACES, vision.TOKENS, vision.images(), vision.GRIDS, strict=True)
    return tuple(Picture(at, at + n, Patches(values, grid)) for at, n, values, grid in shown)


def with_rows(batch: StepInput, at: int, first: int, rows: Sequence[compiled.Logits]) -> StepInput:
    """The batch with the images' rows, the prompt from `first` on standing `at` a place in it."""
    count = len(batch.tokens)
    given = np.zeros((count, rows[0].shape[1]), np.float32)
    where, turned = np.zeros(count, np.int32), np.repeat(batch.positions[:, None], 3, 1)
    own = slice(at, at + min(count - at, len(vision.PROMPT) - first))
    turned[own] = on_axes(pictures(), first, own.stop - own.start)
    for picture, shown in zip(pictures(), rows, strict=False):
        for i, row in enumerate(shown):
            place = at + picture.start + i - first
            if own.start <= place < own.stop:
                given[place], where[place] = row, 1
    return replace(batch, given=given, is_given=where, rope_positions=turned)


def logits(model: Executable, chunk: int, pages: Sequence[int] = PAGES) -> compiled.Logits:
    """At all positions of the prompt with both images."""
    rows, size = seen(model), model.manifest.kv_cache.page_size
    found = []
    for start in range(0, len(vision.PROMPT), chunk):
        tokens = vision.PROMPT[start : start + chunk]
        for first in range(0, len(tokens), compiled.ROWS):
            wanted = range(first, min(first + compiled.ROWS, len(tokens)))
            batch = compiled.step_input([compiled.Part(tokens, start, pages)], size, wanted)
            found.append(model.step(with_rows(batch, 0, start, rows)).copy())
    return np.concatenate(found)


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_names_and_shapes_are_those_of_transformers(variant: str) -> None:
    assert tiny.checksum(weights(variant)) == vision.golden(variant).checksum


def test_positions_on_axes() -> None:
    wanted = vision.golden("qwen2_5_vl").positions
    count = len(vision.PROMPT)
    assert np.array_equal(on_axes(pictures(), 0, count), wanted)
    for first in range(count):
        assert np.array_equal(on_axes(pictures(), first, 3)[: count - first], wanted[first:][:3])
    assert on_axes(pictures(), 100, 1).tolist() == [[100 + wanted[-1, 0] - count + 1] * 3]


def test_rows_of_images(model: tuple[str, CpuExecutable]) -> None:
    variant, executable = model
    found = seen(executable)
    for rows, wanted in zip(found, vision.golden(variant).rows, strict=True):
        assert np.abs(rows - wanted).max() < CLOSE
    again = seen(executable)  # another image was looked at in between
    assert [rows.tobytes() for rows in again] == [rows.tobytes() for rows in found]


@pytest.mark.parametrize("chunk", [40, 13, 1])
def test_logits(model: tuple[str, CpuExecutable], chunk: int) -> None:
    variant, executable = model
    found = logits(executable, chunk)
    gap = np.abs(found[list(vision.POSITIONS)] - vision.golden(variant).logits).max()
    assert gap < CLOSE
    assert found.tobytes() == logits(executable, 40).tobytes()


def test_a_text_alone_and_its_positions_by_default(model: tuple[str, CpuExecutable]) -> None:
    variant, executable = model
    size, rows = executable.manifest.kv_cache.page_size, range(len(vision.TEXT))
    batch = compiled.step_input([compiled.Part(vision.TEXT, 0, list(PAGES))], size, rows)
    found = executable.step(batch).copy()
    assert np.abs(found - vision.golden(variant).text).max() < CLOSE
    said = replace(batch, rope_positions=np.repeat(batch.positions[:, None], 3, 1))
    assert executable.step(said).tobytes() == found.tobytes()


def test_an_image_beside_a_text_changes_neither(model: tuple[str, CpuExecutable]) -> None:
    _, executable = model
    rows, size, count = seen(executable), executable.manifest.kv_cache.page_size, len(PAGES)
    own = compiled.Part(vision.PROMPT[:22], 0, list(PAGES))
    text = compiled.Part(vision.TEXT, 0, [p + count for p in PAGES])
    alone = [
        executable.step(with_rows(compiled.step_input([own], size), 0, 0, rows)).copy(),
        executable.step(compiled.step_input([text], size)).copy(),
    ]
    both = with_rows(compiled.step_input([text, own], size), len(vision.TEXT), 0, rows)
    found = executable.step(both)
    assert found[1].tobytes() == alone[0][0].tobytes()
    assert found[0].tobytes() == alone[1][0].tobytes()


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 4), (1, 32), (32, 1), (5, 6), (3, 10)])
def test_images_of_every_size_are_looked_at(
    model: tuple[str, CpuExecutable], grid: tuple[int, int]
) -> None:
    count = grid[0] * grid[1]
    patches = tiny.draw("any", (count * vision.MERGE**2, vision.WIDTH))
    rows = model[1].see(patches, grid)
    assert rows.shape == (count, 64)
    assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("shape", "grid", "why"),
    [
        ((60, 96), None, "the program takes 1 to 32 in all"),
        ((60, 96), (3, 11), "the program takes 1 to 32 in all"),
        ((60, 96), (-3, -5), "the program takes 1 to 32 in all"),
        ((0, 96), (0, 0), "the program takes 1 to 32 in all"),
        ((60, 96), (3, 4), r"must be float32\[48, 96\]"),
        ((60, 95), (3, 5), r"must be float32\[60, 96\]"),
        ((60,), (3, 5), r"must be float32\[60, 96\]"),
    ],
)
def test_patches_of_a_wrong_form(
    model: tuple[str, CpuExecutable],
    shape: tuple[int, ...],
    grid: tuple[int, int] | None,
    why: str,
) -> None:
    with pytest.raises(RequestError, match=why):
        model[1].see(np.zeros(shape, np.float32), grid)


@pytest.mark.parametrize("turned", [np.zeros((7, 2), np.int32), np.zeros((7, 3), np.int64)])
def test_rope_positions_of_a_wrong_form(
    model: tuple[str, CpuExecutable], turned: np.ndarray
) -> None:
    size = model[1].manifest.kv_cache.page_size
    batch = compiled.step_input([compiled.Part(vision.TEXT, 0, list(PAGES))], size)
    with pytest.raises(RequestError, match=r"rope_positions of a step must be int32\[7, 3\]"):
        model[1].step(replace(batch, rope_positions=turned))


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_scheme_leaves_what_looks_at_images_as_it_is(name: str) -> None:
    stored = stored_weights(vision.QWEN25VL, scheme(name))
    assert {w.scheme.name for w in stored if w.name.startswith("visual.")} == {
        f"q0{scheme(name).compute}"
    }
    assert {w.scheme.name for w in stored if w.kind == "linear"} == {name}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4f16_1"])
def test_quantized_logits_are_those_of_the_restored_weights(name: str, tmp_path: Path) -> None:
    found = []
    drawn, read = weights("qwen2_5_vl"), restored(vision.QWEN25VL, name)
    for part, tensors, own in (("packed", drawn, name), ("plain", read, "q0f32")):
        executable = load(tmp_path / part, "qwen2_5_vl", tensors, own)
        kinds = {p.dtype for p in executable.manifest.params if p.name.startswith("visual.")}
        assert kinds == {scheme(own).compute.name}  # what looks at images is never quantized
        found.append(logits(executable, 40))
        executable.close()
    close = NEAR[scheme(name).compute.name]
    assert np.abs(found[0] - found[1]).max() < close * found[1].std()


def test_calibration_computes_the_same_text() -> None:
    """The model in numpy, which conversion looks at, has the same positions."""
    drawn = weights("qwen2_5_vl")
    built_model = build(vision.QWEN25VL, scheme("q0f32"))
    found = all_logits(built_model, [vision.TEXT], lambda name, x: drawn[name])
    assert np.abs(found - vision.golden("qwen2_5_vl").text).max() < CLOSE


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"vision_config": None}, CheckpointError, "no vision_config"),
        ({"text_config": "qwen2"}, CheckpointError, "no text_config"),
        ({"image_token_id": 64}, CheckpointError, "not one of the 64 tokens"),
        ({"architectures": ["Qwen3VLForConditionalGeneration"]}, UnsupportedModel, "Qwen3VL"),
        ({"deepstack_visual_indexes": [8]}, UnsupportedModel, "deepstack_visual_indexes"),
        ({"text_config": {"model_type": "qwen3"}}, UnsupportedModel, "model_type 'qwen3'"),
        ({"rope_scaling": {"type": "mrope"}}, CheckpointError, "add up to half of the 16 dims"),
        (
            {"rope_scaling": {"mrope_section": [2, 3, 3], "mrope_interleaved": True}},
            UnsupportedModel,
            "mrope_interleaved",
        ),
        ({"rope_scaling": {"mrope_section": [8]}}, CheckpointError, "three whole numbers"),
        ({"rope_scaling": {"mrope_section": [9, 2, -3]}}, CheckpointError, "three whole numbers"),
        (
            {"rope_parameters": {"mrope_section": [3, 3, 2]}},
            CheckpointError,
            "different mrope_section",
        ),
    ],
)
def test_configs_that_are_refused(
    change: dict[str, object], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        family(vision.QWEN25VL).read_config({**vision.QWEN25VL, **change})


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"model_type": "qwen2_vl"}, UnsupportedModel, "qwen2_vl"),
        ({"embed_dim": 32}, UnsupportedModel, "embed_dim"),
        ({"hidden_size": 36}, CheckpointError, "multiples of 4"),
        ({"out_hidden_size": 32}, CheckpointError, "the model's own hidden_size 64"),
        ({"depth": 10**9}, CheckpointError, "depth"),
        ({"window_size": 4}, CheckpointError, "less than a square"),
        ({"temporal_patch_size": 1000}, CheckpointError, "or 16 frames"),
        ({"spatial_patch_size": 5}, UnsupportedModel, "spatial_patch_size 5"),
        ({"fullatt_block_indexes": [1.5]}, CheckpointError, "numbers of layers"),
        ({"fullatt_block_indexes": 7}, CheckpointError, "numbers of layers"),
        ({"in_chans": 4}, UnsupportedModel, "in_chans 4"),
        ({"hidden_act": "mish"}, UnsupportedModel, "mish"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, CheckpointError, "theta"),
        ({"num_position_embeddings": 9}, UnsupportedModel, "num_position_embeddings"),
    ],
)
def test_towers_that_are_refused(
    change: dict[str, object], error: type[Exception], why: str
) -> None:
    config = {**vision.QWEN25VL, "vision_config": {**vision.VISION, **change}}
    with pytest.raises(error, match=why):
        family(config).read_config(config)


@pytest.mark.parametrize(
    ("change", "error", "why"),
    [
        ({"model_type": "qwen2_5_vl"}, UnsupportedModel, "qwen2_5_vl"),
        ({"window_size": 112}, UnsupportedModel, "window_size"),
        ({"hidden_size": 32}, CheckpointError, "the model's own hidden_size 64"),
        ({"embed_dim": 36}, CheckpointError, "multiples of 4"),
        ({"mlp_ratio": 0}, CheckpointError, "mlp_ratio"),
    ],
)
def test_plain_towers_that_are_refused(
    change: dict[str, object], error: type[Exception], why: str
) -> None:
    tower = vision.QWEN2VL["vision_config"]
    config = {**vision.QWEN2VL, "vision_config": {**tower, **change}}  # type: ignore[dict-item]
    with pytest.raises(error, match=why):
        family(config).read_config(config)


def test_newer_configs_say_the_same_in_a_section() -> None:
    plain = family(vision.QWEN25VL).read_config(vision.QWEN25VL)
    outside = ("model_type", "architectures", "vision_config", "image_token_id")
    text = {k: v for k, v in vision.QWEN25VL.items() if k not in outside}
    sections = text.pop("rope_scaling")
    theta = text.pop("rope_theta")
    assert isinstance(sections, dict)
    text["rope_parameters"] = {
        **sections,
        "type": None,
        "rope_type": "default",
        "rope_theta": theta,
    }
    newer = {
        **{k: vision.QWEN25VL[k] for k in outside},
        "text_config": {**text, "model_type": "qwen2_5_vl_text"},
        "vision_config": {
            **vision.VISION,
            "model_type": "qwen2_5_vl_vision",
            "rope_parameters": {"rope_type": "axial", "rope_theta": 10000.0},
        },
    }
    assert family(newer).read_config(newer) == plain


def test_the_published_config_builds_with_the_checkpoints_names() -> None:
    """config.json of Qwen2.5-VL-7B-Instruct."""
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "max_position_embeddings": 128000,
        "max_window_layers": 28,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": 152064,
    }
    shapes = {
        name: shape
        for weight in stored_weights(config, scheme("q4f16_1"))
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True)
    }
    assert shapes["visual.patch_embed.proj.weight"] == (1280, 3, 2, 14, 14)
    assert shapes["visual.blocks.31.attn.qkv.bias"] == (3840,)
    assert shapes["visual.blocks.0.attn.proj.weight"] == (1280, 1280)
    assert shapes["visual.blocks.7.mlp.down_proj.weight"] == (1280, 3420)
    assert shapes["visual.blocks.7.norm2.weight"] == (1280,)
    assert shapes["visual.merger.ln_q.weight"] == (1280,)
    assert shapes["visual.merger.mlp.0.weight"] == (5120, 5120)
    assert shapes["visual.merger.mlp.2.bias"] == (3584,)
    assert shapes["model.layers.27.self_attn.k_proj.bias"] == (512,)
    assert shapes["model.norm.weight"] == (3584,)
    assert shapes["lm_head.weight"] == (152064, 3584)


def test_the_other_published_tower_builds_with_the_checkpoints_names() -> None:
    """The vision_config of Qwen2-VL-2B-Instruct, whose text model has 1536 channels."""
    config = {
        **vision.QWEN2VL,
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": 1536,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }
    shapes = {
        name: shape
        for weight in stored_weights(config, scheme("q4f16_1"))
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True)
    }
    assert shapes["visual.patch_embed.proj.weight"] == (1280, 3, 2, 14, 14)
    assert shapes["visual.blocks.31.mlp.fc1.weight"] == (5120, 1280)
    assert shapes["visual.blocks.31.mlp.fc2.bias"] == (1280,)
    assert shapes["visual.blocks.0.norm2.bias"] == (1280,)
    assert shapes["visual.merger.ln_q.bias"] == (1280,)
    assert shapes["visual.merger.mlp.2.weight"] == (1536, 5120)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("model.visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_files_that_name_tensors_otherwise(other: str, name: str) -> None:
    assert plain_name(vision.QWEN25VL, other) == name
    assert plain_name(vision.QWEN25VL, name) == name
    assert name in weights("qwen2_5_vl")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whatever_stands_in_a_config(data: st.DataObject) -> None:
    config = dict(vision.QWEN25VL)
    at = data.draw(st.sampled_from(["", "rope_scaling", "vision_config"]))
    part = dict(config[at]) if at else config  # type: ignore[call-overload]
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    assert built({**config, at: part} if at else part)
