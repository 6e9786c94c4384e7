"""Qwen2.5-VL's vision tower: its config, strictly read, and its modules.

Source: Bai et al. 2025, "Qwen2.5-VL Technical Report" (arXiv:2502.13923).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from sterna.base.dtype import DType
from sterna.base.errors import CheckpointError
from sterna.models.config import MAX_LAYERS, DecoderConfig, Fields
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import RopeOptions, inv_freq
from sterna.nn.attention import Attention, AttentionOptions
from sterna.nn.decoder import DecoderLayer, Rope
from sterna.nn.grid_vision import (
    GridOptions,
    GridPatchEmbedding,
    GridSight,
    GridTower,
    Merger,
    WindowLayer,
)
from sterna.nn.layers import PreNormLayer
from sterna.nn.mlp import GatedMLP
from sterna.nn.module import Layers
from sterna.nn.norm import RMSNorm

# What silence means.
_SIZES: Mapping[str, int] = MappingProxyType(
    {
        "hidden_size": 3584,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "out_hidden_size": 3584,
    }
)
_WHOLE = [7, 15, 23, 31]
_KEYS = (
    *_SIZES,
    *("depth", "hidden_act", "in_channels", "in_chans", "spatial_patch_size"),
    *("fullatt_block_indexes", "rope_parameters"),
    "tokens_per_second",  # of videos
)


def grid_options(f: Fields, v: Fields, text: DecoderConfig) -> GridOptions:
    """A tower as its own section `v` states it, beside the text model of the whole config `f`."""
    v.refuse_unless("model_type", ["qwen2_5_vl", "qwen2_5_vl_vision"])
    v.refuse_unless("in_channels", [3])
    v.refuse_unless("in_chans", [3])
    v.refuse_others(_KEYS)
    sizes = {key: v.positive(key, usual, most=65536) for key, usual in _SIZES.items()}
    v.refuse_unless("spatial_patch_size", [sizes["patch_size"]])
    layers = v.positive("depth", 32, most=MAX_LAYERS)
    hidden, heads, merge = sizes["hidden_size"], sizes["num_heads"], sizes["spatial_merge_size"]
    if hidden % heads or hidden // heads % 4:
        raise CheckpointError(
            f"the {heads} heads of vision_config must divide its hidden_size {hidden} into parts "
            "that are multiples of 4"
        )
    if sizes["out_hidden_size"] != text.hidden_size:
        raise CheckpointError(
            f"out_hidden_size of vision_config is {sizes['out_hidden_size']}, the model's own "
            f"hidden_size {text.hidden_size}"
        )
    if merge > 16 or sizes["temporal_patch_size"] > 16:
        raise CheckpointError("vision_config merges more than 16 patches a side, or 16 frames")
    window = sizes["window_size"] // merge // sizes["patch_size"]
    if not window:
        raise CheckpointError("window_size of vision_config is less than a square of its patches")
    return GridOptions(
        hidden_size=hidden,
        intermediate_size=sizes["intermediate_size"],
        num_attention_heads=heads,
        layers=layers,
        patch_size=sizes["patch_size"],
        act=v.activation("hidden_act", "silu"),
        image_token=_image_token(f, text),
        frames=sizes["temporal_patch_size"],
        merge=merge,
        window=window,
        whole=_whole(v, layers),
        theta=_theta(v),
    )


def _image_token(f: Fields, text: DecoderConfig) -> int:
    token = f.positive("image_token_id", 151655)
    if token >= text.vocab_size:
        raise CheckpointError(
            f"image_token_id {token} in config.json is not one of the {text.vocab_size} tokens"
        )
    return token


def _whole(v: Fields, layers: int) -> tuple[int, ...]:
    given = v.config.get("fullatt_block_indexes")
    found = _WHOLE if given is None else given
    if not isinstance(found, list) or not all(type(i) is int and 0 <= i < 2**31 for i in found):
        raise CheckpointError("fullatt_block_indexes of vision_config must be numbers of layers")
    return tuple(sorted({i for i in found if i < layers}))


def _theta(v: Fields) -> float:
    """The base of the angles, which rows and columns share."""
    given = v.config.get("rope_parameters")
    if not isinstance(given, Mapping):
        return rope_options({"rope_parameters": given}).theta
    own = {k: x for k, x in given.items() if (k, x) != ("rope_type", "axial")}
    options = rope_options({"rope_parameters": own})
    if options != RopeOptions(theta=options.theta):
        raise CheckpointError("rope_parameters of vision_config may give a rope_theta alone")
    return options.theta


def grid_sight(o: GridOptions, width: int, dtype: DType, names: Mapping[str, str]) -> GridSight:
    """What looks at images and gives rows of `width`."""
    kinds = list(dict.fromkeys(o.order))
    layers: Layers[DecoderLayer] = Layers(
        [_layer(o, windowed, dtype) for windowed in kinds], [kinds.index(k) for k in o.order]
    )
    half = o.head_dim // 2
    table, scaling = inv_freq(RopeOptions(theta=o.theta), half)
    rope = Rope(np.concatenate([table, table]), scaling, (half // 2, half // 2))
    merger = Merger(RMSNorm(o.hidden_size, o.norm_eps, dtype), o, width, dtype)
    return GridSight(GridTower(GridPatchEmbedding(o, dtype), layers), merger, o, rope, names)


def _layer(o: GridOptions, windowed: int, dtype: DType) -> PreNormLayer:
    options = AttentionOptions(
        hidden_size=o.hidden_size,
        num_heads=o.num_attention_heads,
        num_kv_heads=o.num_attention_heads,
        head_dim=o.head_dim,
        dtype=dtype,
        qkv_bias=True,
        output_bias=True,
        projections="joined",
    )
    first, second = (RMSNorm(o.hidden_size, o.norm_eps, dtype) for _ in range(2))
    mlp = GatedMLP(o.hidden_size, o.intermediate_size, dtype, act=o.act, bias=True)
    kind = WindowLayer if windowed else PreNormLayer
    return kind(first, Attention(options), second, mlp)
