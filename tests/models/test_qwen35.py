"""Qwen3.5 as published: its text is a section of the config, beside a tower for images."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_families
from test_family_logits import weights

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))

from source_folder import add_tokenizer

from sterna.base.errors import CheckpointError, UnsupportedModel
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.convert import convert_weight, gen_config
from sterna.models import build, family
from sterna.models.params import is_ignored, stored_weights
from sterna.nn.decoder import Limits, trace_causal_lm
from sterna.passes.pipeline import graph_passes, run
from sterna.quantize.scheme import scheme

KINDS = {"qwen3.5": ("qwen3_5", "Qwen3_5"), "qwen3.5-moe": ("qwen3_5_moe", "Qwen3_5Moe")}
TOWER = {"model.visual.patch_embed.proj.bias": (8,), "mtp.fc.weight": (48, 96)}


def whole(variant: str) -> dict[str, Any]:
    """The config of a published folder whose text model is the variant."""
    kind, title = KINDS[variant]
    text = {k: v for k, v in tiny_families.VARIANTS[variant].items() if k != "architectures"}
    return {
        "model_type": kind,
        "architectures": [f"{title}ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": f"{kind}_vision", "depth": 2, "hidden_size": 8},
        "image_token_id": 60,
        "video_token_id": 61,
        "vision_start_token_id": 62,
        "vision_end_token_id": 63,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def as_published(plain: tiny_families.Weights) -> tiny_families.Weights:
    """Names of the text model inside the other, and experts in one tensor, [experts, out, in]."""
    found = {
        name.replace("model.", "model.language_model.", 1): array
        for name, array in plain.items()
        if ".experts." not in name
    }
    for prefix in {n.split(".experts.")[0] for n in plain if ".experts." in n}:
        place = prefix.replace("model.", "model.language_model.", 1) + ".experts."
        each = [
            [plain[f"{prefix}.experts.{e}.{part}_proj.weight"] for part in ("gate", "up", "down")]
            for e in range(6)
        ]
        found[f"{place}gate_up_proj"] = np.stack([np.concatenate(e[:2]) for e in each])
        found[f"{place}down_proj"] = np.stack([e[2] for e in each])
    return found


@pytest.mark.parametrize("variant", KINDS)
def test_its_text_is_converted_as_if_it_were_alone(variant: str, tmp_path: Path) -> None:
    """And the text model cut out of it as well, whose names may still be the published ones."""
    plain = weights(variant)
    named = as_published(plain)
    towers = {n: np.ones(shape, np.float32) for n, shape in TOWER.items()}
    text = tiny_families.VARIANTS[variant]
    tiny.write_folder(tmp_path / "text", text, plain)
    tiny.write_folder(tmp_path / "cut", text, named)
    tiny.write_folder(tmp_path / "whole", whole(variant), {**named, **towers})
    for name in ("text", "cut", "whole"):
        add_tokenizer(tmp_path / name)
        for make in (convert_weight, gen_config):
            make(tmp_path / name, tmp_path / "out" / name, quantization="q0f32")
    alone, cut, found = (
        read_mlc_folder(tmp_path / "out" / n).tensors for n in ("text", "cut", "whole")
    )
    assert len(found) == len(cut) == len(alone)
    for name, tensor in alone.items():
        wanted = tensor.read().tobytes()
        assert cut[name].read().tobytes() == wanted
        assert found[name.replace("model.", "model.language_model.", 1)].read().tobytes() == wanted


@pytest.mark.parametrize("variant", KINDS)
def test_what_is_not_its_text_is_refused(variant: str) -> None:
    config, text = whole(variant), tiny_families.VARIANTS[variant]
    read = family(config).read_config
    assert read(config) == family(text).read_config(text)
    inner = config["text_config"]
    rope = {**inner["rope_parameters"], "mrope_wave": 3}
    other = not inner["tie_word_embeddings"]
    for changes, error, words in (
        ({"text_config": {**inner, "model_type": "qwen3_next"}}, UnsupportedModel, "model_type"),
        ({"text_config": None}, CheckpointError, "text_config"),
        ({"pixels": 3}, UnsupportedModel, "pixels"),
        ({"tie_word_embeddings": other}, CheckpointError, "tie_word_embeddings"),
        ({"text_config": {**inner, "rope_parameters": rope}}, UnsupportedModel, "mrope_wave"),
    ):
        with pytest.raises(error, match=words):
            read({**config, **changes})
    for changes in (
        {"attn_output_gate": False},
        {"output_gate_type": "sigmoid"},
        {"mlp_only_layers": [0]},
        {"layer_types": ["linear_attention"] * int(str(text["num_hidden_layers"]))},
        {"linear_num_value_heads": 3},
    ):
        with pytest.raises(CheckpointError):
            family(text).build({**text, **changes}, scheme("q0f32").compute)


# What Qwen publishes, but for keys that say nothing of the text model's forward pass.
SHARED = {
    "model_type": "qwen3_5_text", "head_dim": 256, "full_attention_interval": 4,
    "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "vocab_size": 248320, "max_position_embeddings": 262144, "attn_output_gate": True,
    "rope_parameters": {
        "mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default",
        "partial_rotary_factor": 0.25, "rope_theta": 10000000,
    },
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "0.8B": {
        "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
        "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_value_heads": 16,
        "tie_word_embeddings": True,
    },
    "27B": {
        "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 64,
        "num_attention_heads": 24, "num_key_value_heads": 4, "linear_num_value_heads": 48,
        "output_gate_type": "swish",
    },
    "35B-A3B": {
        "model_type": "qwen3_5_moe_text", "hidden_size": 2048, "num_hidden_layers": 40,
        "num_attention_heads": 16, "num_key_value_heads": 2, "linear_num_value_heads": 32,
        "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
}  # fmt: skip
# As transformers counts what it makes of the same configs, and its names of tensors beside experts.
PARAMETERS = {
    "0.8B": (752_393_024, 320), "27B": (26_895_998_464, 851), "35B-A3B": (34_660_610_688, 613)
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size: str) -> None:
    config = {**SHARED, **SIZES[size]}
    counted, named = PARAMETERS[size]
    stored = stored_weights(config, scheme("q4f16_1"))
    assert sum(prod(weight.shape) for weight in stored) == counted
    sources = [s for weight in stored for s in weight.sources if ".experts." not in s]
    assert len(sources) == named
    module = trace_causal_lm(build(config, scheme("q4f16_1")), Limits(8, 4, 16))
    run(module, graph_passes(family(config).FUSED, code_bits=None))


def test_what_the_tower_and_the_guesser_hold_is_passed_over() -> None:
    config = whole("qwen3.5-moe")
    assert all(is_ignored(config, name) for name in TOWER)
    assert not is_ignored(config, "model.language_model.norm.weight")
