"""The vision towers of Qwen2-VL and Qwen2.5-VL: their configs, strictly read, and their modules.

Sources: Wang et al. 2024, "Qwen2-VL" (arXiv:2409.12191); Bai et al. 2025, "Qwen2.5-VL Technical
Report" (arXiv:2502.13923).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

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
from sterna.nn.mlp import MLP, GatedMLP
from sterna.nn.module import Layers
from sterna.nn.norm import LayerNorm, Norm, RMSNorm

# What silence means.
_COMMON: Mapping[str, int] = MappingProxyType(
    {
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "hidden_size": 3584,
    }
)
_PLAIN: Mapping[str, int] = MappingProxyType({**_COMMON, "embed_dim": 1280, "mlp_ratio": 4})
_WINDOWED: Mapping[str, int] = MappingProxyType(
    {**_COMMON, "intermediate_size": 3420, "window_size": 112, "out_hidden_size": 3584}
)
_WHOLE = [7, 15, 23, 31]
_KEYS = ("depth", "hidden_act", "in_channels", "in_chans", "spatial_patch_size", "rope_parameters")


def plain_options(f: Fields, v: Fields, text: DecoderConfig) -> GridOptions:
    """Qwen2-VL's tower as its own section `v` states it, beside the text model of the config `f`.

    Its `hidden_size` is that of the rows.
    """
    v.refuse_unless("model_type", ["qwen2_vl", "qwen2_vl_vision"])
    v.refuse_others((*_PLAIN, *_KEYS))
    sizes = _sizes(v, _PLAIN)
    _check_width("hidden_size", sizes, text)
    return _options(
        f,
        v,
        text,
        hidden_size=sizes["embed_dim"],
        intermediate_size=sizes["embed_dim"] * sizes["mlp_ratio"],
        act=v.activation("hidden_act", "quick_gelu"),
        layer_norm=True,
        gated=False,
    )


def windowed_options(f: Fields, v: Fields, text: DecoderConfig) -> GridOptions:
    """The same of Qwen2.5-VL's tower."""
    v.refuse_unless("model_type", ["qwen2_5_vl", "qwen2_5_vl_vision"])
    v.refuse_others((*_WINDOWED, *_KEYS, "fullatt_block_indexes", "tokens_per_second"))
    sizes = _sizes(v, _WINDOWED)
    _check_width("out_hidden_size", sizes, text)
    window = sizes["window_size"] // sizes["spatial_merge_size"] // sizes["patch_size"]
    if not window:
        raise CheckpointError("window_size of vision_config is less than a square of its patches")
    return _options(
        f,
        v,
        text,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        act=v.activation("hidden_act", "silu"),
        window=window,
        whole=_whole(v),
    )


def _sizes(v: Fields, usual: Mapping[str, int]) -> dict[str, int]:
    return {key: v.positive(key, size, most=65536) for key, size in usual.items()}


def _check_width(key: str, sizes: Mapping[str, int], text: DecoderConfig) -> None:
    """CheckpointError for rows of another width than the model's."""
    if sizes[key] != text.hidden_size:
        raise CheckpointError(
            f"{key} of vision_config is {sizes[key]}, the model's own hidden_size "
            f"{text.hidden_size}"
        )


def _options(
    f: Fields, v: Fields, text: DecoderConfig, *, hidden_size: int, **own: Any
) -> GridOptions:
    """What both towers have."""
    sizes = _sizes(v, _COMMON)
    for key, only in (("in_channels", 3), ("in_chans", 3)):
        v.refuse_unless(key, [only])
    v.refuse_unless("spatial_patch_size", [sizes["patch_size"]])
    heads, merge, frames = (
        sizes[key] for key in ("num_heads", "spatial_merge_size", "temporal_patch_size")
    )
    if hidden_size % heads or hidden_size // heads % 4:
        raise CheckpointError(
            f"the {heads} heads of vision_config must divide its {hidden_size} channels into parts "
            "that are multiples of 4"
        )
    if merge > 16 or frames > 16:
        raise CheckpointError("vision_config merges more than 16 patches a side, or 16 frames")
    return GridOptions(
        hidden_size=hidden_size,
        num_attention_heads=heads,
        layers=v.positive("depth", 32, most=MAX_LAYERS),
        patch_size=sizes["patch_size"],
        image_token=_image_token(f, text),
        frames=frames,
        merge=merge,
        theta=_theta(v),
        **own,
    )


def _image_token(f: Fields, text: DecoderConfig) -> int:
    token = f.positive("image_token_id", 151655)
    if token >= text.vocab_size:
        raise CheckpointError(
            f"image_token_id {token} in config.json is not one of the {text.vocab_size} tokens"
        )
    return token


def _whole(v: Fields) -> tuple[int, ...]:
    given = v.config.get("fullatt_block_indexes")
    found = _WHOLE if given is None else given
    if not isinstance(found, list) or not all(type(i) is int and 0 <= i < 2**31 for i in found):
        raise CheckpointError("fullatt_block_indexes of vision_config must be numbers of layers")
    return tuple(sorted(set(found)))


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
    merger = Merger(_norm(o, dtype), o, width, dtype)
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
    form = GatedMLP if o.gated else MLP
    mlp = form(o.hidden_size, o.intermediate_size, dtype, act=o.act, bias=True)
    kind = WindowLayer if windowed else PreNormLayer
    return kind(_norm(o, dtype), Attention(options), _norm(o, dtype), mlp)


def _norm(o: GridOptions, dtype: DType) -> Norm:
    kind = LayerNorm if o.layer_norm else RMSNorm
    return kind(o.hidden_size, o.norm_eps, dtype)
