"""LLaVA 1.5: Llama with CLIP's vision tower and a projector of two layers; text and images.

Images are squares of one size, and each stands in the prompt as one row a patch.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

from sterna.base.dtype import DType
from sterna.base.errors import CheckpointError
from sterna.models.clip import clip_layer, clip_options
from sterna.models.config import Config, DecoderConfig, Fields, section
from sterna.models.family import Names
from sterna.models.llama import Llama
from sterna.nn.decoder import DecoderLayer
from sterna.nn.linear import Linear
from sterna.nn.module import Layers, Module
from sterna.nn.norm import LayerNorm
from sterna.nn.trace import Tensor
from sterna.nn.vision import PatchEmbeddings, Sight, SquareSight, Tower, VisionOptions

# What silence means in the text model's config, which is written without what is usual.
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
    PREFIXES: ClassVar[Names] = {  # of transformers 5, and of what it holds while it runs
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "vision_tower.": "vision_tower.vision_model.",
        "lm_head.": "language_model.lm_head.",
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
        text = Fields({**_TEXT, **section(config, "text_config")})
        text.refuse_unless("model_type", ["llama"])
        read = Llama.read_config(text.config)
        f.refuse_unless("vocab_size", [read.vocab_size])  # in the first conversions
        vision = clip_options(f, Fields(section(config, "vision_config")))
        if vision.image_token >= read.vocab_size:
            raise CheckpointError(
                f"image_token_index {vision.image_token} in config.json is not one of the "
                f"{read.vocab_size} tokens"
            )
        return replace(read, vision=vision)

    @classmethod
    def sight(cls, c: DecoderConfig, dtype: DType) -> Sight | None:
        o = c.vision
        assert isinstance(o, VisionOptions), "read_config reads the tower"
        layers: Layers[DecoderLayer] = Layers([clip_layer(o, dtype)], [0] * o.layers)
        norm = LayerNorm(o.hidden_size, o.norm_eps, dtype)
        tower = Tower(PatchEmbeddings(o, dtype), norm, layers)
        return SquareSight(tower, Projector(o, c.hidden_size, dtype), o, cls.SIGHT_NAMES)


class Projector(Module):
    """linear_2(act(linear_1(x)))."""

    def __init__(self, o: VisionOptions, width: int, dtype: DType) -> None:
        self.linear_1 = Linear(o.hidden_size, width, dtype, bias=o.projector_bias)
        self.linear_2 = Linear(width, width, dtype, bias=o.projector_bias)
        self.act = o.projector_act

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear_2(x.trace.emit(self.act, self.linear_1(x)))
