"""LLaVA 1.5: Llama with CLIP's vision tower and a projector of two layers; text and images.

Images are squares of one size, and each stands in the prompt as one row a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

from sterna.base.dtype import DType
from sterna.base.errors import CheckpointError
from sterna.models.config import MAX_LAYERS, Config, DecoderConfig, Fields
from sterna.models.family import Names
from sterna.models.llama import Llama
from sterna.nn.attention import Attention, AttentionOptions
from sterna.nn.decoder import DecoderLayer
from sterna.nn.layers import PreNormLayer
from sterna.nn.linear import Linear
from sterna.nn.mlp import MLP
from sterna.nn.module import Layers, Module
from sterna.nn.norm import LayerNorm
from sterna.nn.trace import Tensor
from sterna.nn.vision import PatchEmbeddings, Sight, Tower, VisionOptions

# What silence means in the two configs inside, which are written without what is usual.
_TEXT: Config = MappingProxyType(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    }
)
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


class Llava(Llama):
    """The text model's config and the tower's are sections of config.json."""

    MODEL_TYPES = ("llava",)
    ARCHITECTURES = ("LlavaForConditionalGeneration",)
    KEYS = (
        "text_config vision_config image_token_index image_token_id image_seq_length "
        "ignore_index projector_hidden_act vision_feature_layer vision_feature_select_strategy "
        "multimodal_projector_bias vocab_size"
    )
    NAMES: ClassVar[Names] = {"model": "language_model.model", "lm_head": "language_model.lm_head"}
    SIGHT_NAMES: ClassVar[Names] = {
        "tower": "vision_tower.vision_model",
        "projector": "multi_modal_projector",
        "norm": "pre_layrnorm",
        "layers": "encoder.layers",
        "input_layernorm": "layer_norm1",
        "post_attention_layernorm": "layer_norm2",
        "o_proj": "out_proj",
        "up_proj": "fc1",
        "down_proj": "fc2",
    }
    IGNORED = (
        *Llama.IGNORED,
        "vision_tower.vision_model.post_layernorm.*",
        "vision_tower.vision_model.embeddings.position_ids",
        "vision_tower.vision_model.encoder.layers.*",  # those behind the one that is given on
    )

    @classmethod
    def read_config(cls, config: Config) -> DecoderConfig:
        f = Fields(config)
        f.refuse_architectures_but(cls.ARCHITECTURES)
        f.refuse_others((*cls.KEYS.split(), "tie_word_embeddings"))
        text = Fields({**_TEXT, **_section(config, "text_config")})
        text.refuse_unless("model_type", ["llama"])
        read = Llama.read_config(text.config)
        f.refuse_unless("vocab_size", [read.vocab_size])  # in the first conversions
        vision = _vision(f, _section(config, "vision_config"))
        if vision.image_token >= read.vocab_size:
            raise CheckpointError(
                f"image_token_index {vision.image_token} in config.json is not one of the "
                f"{read.vocab_size} tokens"
            )
        return replace(read, vision=vision)

    @classmethod
    def sight(cls, c: DecoderConfig, dtype: DType) -> Sight | None:
        o = c.vision
        assert o is not None, "read_config reads the tower"
        layers: Layers[DecoderLayer] = Layers([_layer(o, dtype)], [0] * o.layers)
        norm = LayerNorm(o.hidden_size, o.norm_eps, dtype)
        tower = Tower(PatchEmbeddings(o, dtype), norm, layers)
        return Sight(tower, Projector(o, c.hidden_size, dtype), o, cls.SIGHT_NAMES)


class Projector(Module):
    """linear_2(act(linear_1(x)))."""

    def __init__(self, o: VisionOptions, width: int, dtype: DType) -> None:
        self.linear_1 = Linear(o.hidden_size, width, dtype, bias=o.projector_bias)
        self.linear_2 = Linear(width, width, dtype, bias=o.projector_bias)
        self.act = o.projector_act

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear_2(x.trace.emit(self.act, self.linear_1(x)))


def _layer(o: VisionOptions, dtype: DType) -> PreNormLayer:
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


def _section(config: Config, key: str) -> Config:
    value = config.get(key)
    if not isinstance(value, Mapping):
        raise CheckpointError(f"config.json has no {key}, which is an object in this family")
    return value


def _vision(f: Fields, section: Config) -> VisionOptions:
    v = Fields(section)
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
