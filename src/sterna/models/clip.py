"""CLIP's vision tower as a part of other models: its config, strictly read, and its layers.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv:2103.00020).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sterna.base.dtype import DType
from sterna.base.errors import CheckpointError
from sterna.models.config import MAX_LAYERS, Fields
from sterna.nn.attention import Attention, AttentionOptions
from sterna.nn.layers import PreNormLayer
from sterna.nn.mlp import MLP
from sterna.nn.norm import LayerNorm
from sterna.nn.vision import VisionOptions

# What silence means.
_CLIP: Mapping[str, int] = MappingProxyType(
    {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
    }
)
_CLIP_KEYS = (
    *_CLIP,
    *("layer_norm_eps", "hidden_act", "num_channels", "projection_dim", "vocab_size"),
    *("initializer_factor",),  # and of the head that is not read, the two before
)


def clip_options(f: Fields, v: Fields) -> VisionOptions:
    """A tower as its own section `v` states it, and what the whole config `f` says of its use."""
    v.refuse_unless("model_type", ["clip_vision_model"])
    v.refuse_unless("num_channels", [3])
    v.refuse_others(_CLIP_KEYS)
    sizes = {key: v.positive(key, usual, most=65536) for key, usual in _CLIP.items()}
    total = v.positive("num_hidden_layers", _CLIP["num_hidden_layers"], most=MAX_LAYERS)
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise CheckpointError("num_attention_heads of vision_config do not divide its hidden_size")
    if sizes["patch_size"] > sizes["image_size"]:
        raise CheckpointError("patch_size of vision_config is more than its image_size")
    f.refuse_unless("vision_feature_select_strategy", ["default", "full"])
    token = f.config.get("image_token_index", f.config.get("image_token_id", 32000))
    return VisionOptions(
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_attention_heads=sizes["num_attention_heads"],
        layers=_layers(f, total),
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        norm_eps=v.number("layer_norm_eps", 1e-5),
        act=v.activation("hidden_act", "quick_gelu"),
        projector_act=f.activation("projector_hidden_act", "gelu"),
        projector_bias=f.flag("multimodal_projector_bias", True),
        image_token=Fields({"image_token_index": token}).positive("image_token_index"),
        whole=f.config.get("vision_feature_select_strategy") == "full",
    )


def _layers(f: Fields, total: int) -> int:
    """How many layers come before the states that are given on: all but one as a rule."""
    value = f.config.get("vision_feature_layer", -2)
    if not isinstance(value, int) or isinstance(value, bool) or not -total <= value <= total:
        raise CheckpointError(
            f"vision_feature_layer in config.json must be a number from {-total} to {total}, not "
            f"{value!r:.60}"
        )
    return max(1, value if value >= 0 else total + 1 + value)


def clip_layer(o: VisionOptions, dtype: DType) -> PreNormLayer:
    """A layer in which every patch sees the whole image."""
    options = AttentionOptions(
        hidden_size=o.hidden_size,
        num_heads=o.num_attention_heads,
        num_kv_heads=o.num_attention_heads,
        head_dim=o.hidden_size // o.num_attention_heads,
        dtype=dtype,
        qkv_bias=True,
        output_bias=True,
        rope=None,
    )
    first, second = (LayerNorm(o.hidden_size, o.norm_eps, dtype) for _ in range(2))
    mlp = MLP(o.hidden_size, o.intermediate_size, dtype, act=o.act)
    return PreNormLayer(first, Attention(options), second, mlp)
