"""Qwen2-VL and Qwen2.5-VL: Qwen2 with positions in time, height and width; text and images.

Images have any size, and a square of patches is one row of the prompt. Videos are not taken.
Sources: Wang et al. 2024, "Qwen2-VL" (arXiv:2409.12191); Bai et al. 2025, "Qwen2.5-VL Technical
Report" (arXiv:2502.13923).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from sterna.base.dtype import DType
from sterna.base.errors import CheckpointError
from sterna.models.config import Config, DecoderConfig, Fields, section
from sterna.models.family import Names
from sterna.models.qwen2 import Qwen2, qwen_windows
from sterna.models.qwen_vision import grid_sight, plain_options, windowed_options
from sterna.models.rope_options import multimodal
from sterna.nn.grid_vision import GridOptions
from sterna.nn.vision import Sight

_OUTSIDE = ("model_type", "architectures", "text_config", "vision_config")


class Qwen2VL(Qwen2):
    """The text model's config is the top of config.json or a section; the tower's is a section."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen2VLForConditionalGeneration",)
    KEYS = (
        f"{Qwen2.KEYS} text_config vision_config image_token_id video_token_id vision_token_id "
        "vision_start_token_id vision_end_token_id"
    )
    SIGHT_NAMES: ClassVar[Names] = {
        "tower": "visual",
        "projector": "visual.merger",
        "embeddings": "patch_embed.proj",
        "layers": "blocks",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "self_attn": "attn",
        "qkv_proj": "qkv",
        "o_proj": "proj",
        "norm": "ln_q",
        "first": "mlp.0",
        "second": "mlp.2",
    }
    PLAIN_NAMES: ClassVar[Names] = {"up_proj": "fc1", "down_proj": "fc2"}
    PREFIXES: ClassVar[Names] = {  # of transformers 5
        "model.visual.": "visual.",
        "model.language_model.": "model.",
    }

    @classmethod
    def read_config(cls, config: Config) -> DecoderConfig:
        f = Fields(config)
        f.refuse_architectures_but(cls.ARCHITECTURES)
        inner = config.get("text_config")
        text = {key: value for key, value in config.items() if key not in _OUTSIDE}
        text |= section(config, "text_config") if inner is not None else {}
        Fields(text).refuse_unless("model_type", [f"{cls.MODEL_TYPES[0]}_text"])
        read = super().read_config({**text, "architectures": None})
        if 2 * sum(read.rope_sections) != read.head_dim:
            raise CheckpointError(
                f"mrope_section {list(read.rope_sections)} in config.json must add up to half of "
                f"the {read.head_dim} dims of a head"
            )
        return replace(read, vision=cls.tower(f, Fields(section(config, "vision_config")), read))

    @classmethod
    def tower(cls, f: Fields, v: Fields, text: DecoderConfig) -> GridOptions:
        """What the tower's section `v` states."""
        return plain_options(f, v, text)

    @classmethod
    def read(cls, f: Fields) -> DecoderConfig:
        config, sections = multimodal(f.config)
        return replace(f, config=config).decoder(
            qkv_bias=True,
            kinds=qwen_windows(f),
            eps=("rms_norm_eps", 1e-5),
            theta=1e6,
            rope_sections=sections,
        )

    @classmethod
    def sight(cls, c: DecoderConfig, dtype: DType) -> Sight | None:
        assert isinstance(c.vision, GridOptions), "read_config reads the tower"
        own = {} if c.vision.gated else cls.PLAIN_NAMES
        return grid_sight(c.vision, c.hidden_size, dtype, {**cls.SIGHT_NAMES, **own})


class Qwen25VL(Qwen2VL):
    """Its tower has windows, and layers in the form of the text model's."""

    MODEL_TYPES = ("qwen2_5_vl",)
    ARCHITECTURES = ("Qwen2_5_VLForConditionalGeneration",)

    @classmethod
    def tower(cls, f: Fields, v: Fields, text: DecoderConfig) -> GridOptions:
        return windowed_options(f, v, text)
