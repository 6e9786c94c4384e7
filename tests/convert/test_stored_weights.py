"""The list of a folder's weights follows from config and scheme alone."""

import json
from pathlib import Path

import pytest
import tiny

from sterna.base.dtype import F16, U8, U32
from sterna.models.params import fingerprint, is_ignored, stored_weights, tied_head
from sterna.quantize.scheme import SCHEMES, scheme

MLC_NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.qkv_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.mlp.gate_up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def test_names_are_those_of_mlc() -> None:
    config = {**tiny.VARIANTS["llama2-gqa"], "num_hidden_layers": 1}
    assert [w.name for w in stored_weights(config, scheme("q0f32"))] == MLC_NAMES


def test_stacked_sources_in_order() -> None:
    config = tiny.VARIANTS["llama2-gqa"]
    weights = {w.name: w for w in stored_weights(config, scheme("q4f16_1"))}
    qkv = weights["model.layers.2.self_attn.qkv_proj.weight"]
    prefix = "model.layers.2.self_attn."
    assert qkv.sources == tuple(f"{prefix}{x}_proj.weight" for x in "qkv")
    assert qkv.source_shapes == ((64, 64), (32, 64), (32, 64))
    assert qkv.shape == (128, 64)
    assert qkv.tensors == {
        f"{prefix}qkv_proj.q_weight": ((128, 8), U32),
        f"{prefix}qkv_proj.q_scale": ((128, 2), F16),
    }
    gate_up = weights["model.layers.0.mlp.gate_up_proj.weight"]
    assert [s.split(".")[-2] for s in gate_up.sources] == ["gate_proj", "up_proj"]
    assert weights["model.norm.weight"].tensors == {"model.norm.weight": ((64,), F16)}


def test_biases_are_stacked_like_their_weights() -> None:
    weights = stored_weights(tiny.VARIANTS["attention-bias"], scheme("q4f16_1z"))
    found = {w.name: w for w in weights}
    bias = found["model.layers.0.self_attn.qkv_proj.bias"]
    assert bias.tensors == {bias.name: ((128,), F16)}
    assert [s.split(".")[-2] for s in bias.sources] == ["q_proj", "k_proj", "v_proj"]
    own = found["model.layers.0.self_attn.o_proj.bias"]
    assert own.sources == (own.name,)
    packed = found["model.layers.0.self_attn.qkv_proj.weight"]
    assert packed.parts["q_zero"] == ((128, 2), U8)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_every_tensor_of_the_checkpoint_is_read_once(variant: str) -> None:
    config = tiny.VARIANTS[variant]
    for name in SCHEMES:
        sources = [
            pair
            for w in stored_weights(config, scheme(name))
            for pair in zip(w.sources, w.source_shapes, strict=True)
        ]
        assert len(sources) == len(dict(sources))
        assert dict(sources) == tiny.shapes(config)


def test_tied_heads_and_ignored_tensors() -> None:
    tied = tiny.VARIANTS["llama3.2-tied"]
    assert tied_head(tied) == ("lm_head.weight", "model.embed_tokens.weight")
    assert tied_head(tiny.VARIANTS["llama3.1"]) is None
    assert not any("lm_head" in w.name for w in stored_weights(tied, scheme("q4f16_1")))
    assert is_ignored(tied, "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not is_ignored(tied, "model.layers.0.self_attn.q_proj.weight")


def test_fingerprint_is_of_what_shapes_the_program() -> None:
    config, q4 = tiny.VARIANTS["llama3.1"], scheme("q4f16_1")
    own = fingerprint(config, q4)
    same = {**config, "transformers_version": "9.9", "eos_token_id": [7], "torch_dtype": "float16"}
    assert fingerprint(same, q4) == own
    for change in ({"rms_norm_eps": 1e-6}, {"rope_theta": 1e4}, {"num_hidden_layers": 3}):
        assert fingerprint({**config, **change}, q4) != own
    assert fingerprint(config, scheme("q4f32_1")) != own


def test_both_forms_of_rope_keys_are_one_program() -> None:
    new = tiny.VARIANTS["parameters-default"]
    old = {k: v for k, v in new.items() if k != "rope_parameters"} | {"rope_theta": 10000.0}
    assert fingerprint(new, scheme("q0f32")) == fingerprint(old, scheme("q0f32"))


def test_real_weight_names_are_read(shared: Path) -> None:
    for name in ("Llama-2-7b-hf", "Mistral-7B-Instruct-v0.3"):
        folder = shared / "configs" / name
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        config = json.loads((folder / "config.json").read_text())
        read = {s for w in stored_weights(config, scheme("q4f16_1")) for s in w.sources}
        stored = {n for n in index["weight_map"] if not is_ignored(config, n)}
        assert read == stored
