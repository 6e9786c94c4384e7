"""Qwen3.5 and 3.6 as published, beside a tower for images: the text model alone is computed.

The text model's config is a section of config.json, and the tower's tensors are passed over.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.base.errors import CheckpointError
from sterna.models.config import Config, DecoderConfig, Fields, section
from sterna.models.family import Names
from sterna.models.qwen3_5 import Qwen35, Qwen35Moe
from sterna.nn.decoder import NO_NAMES


class Qwen35WithTower(Qwen35):
    """The head stands beside the text model."""

    MODEL_TYPES: ClassVar[tuple[str, ...]] = ("qwen3_5",)
    ARCHITECTURES: ClassVar[tuple[str, ...]] = ("Qwen3_5ForConditionalGeneration",)
    KEYS = (
        f"{Qwen35.KEYS} text_config vision_config image_token_id video_token_id "
        "vision_start_token_id vision_end_token_id language_model_only"
    )
    NAMES: ClassVar[Names] = {**Qwen35.NAMES, "model": "model.language_model"}
    PREFIXES: ClassVar[Names] = NO_NAMES
    IGNORED = (*Qwen35.IGNORED, "model.visual.*")
    TEXT: ClassVar[type[Qwen35]] = Qwen35

    @classmethod
    def read_config(cls, config: Config) -> DecoderConfig:
        f = Fields(config)
        f.refuse_architectures_but(cls.ARCHITECTURES)
        f.refuse_others((*cls.KEYS.split(), "tie_word_embeddings"))
        text = Fields(section(config, "text_config"))
        text.refuse_unless("model_type", cls.TEXT.MODEL_TYPES)
        tied = f.flag("tie_word_embeddings")
        if text.flag("tie_word_embeddings", tied) != tied:
            raise CheckpointError(
                f"tie_word_embeddings in config.json is {tied}, and {not tied} in its text_config;"
                " remove the one that is wrong"
            )
        inner = {**text.config, "architectures": None, "tie_word_embeddings": tied}
        return cls.TEXT.read_config(inner)


class Qwen35MoeWithTower(Qwen35WithTower):
    """With experts."""

    MODEL_TYPES = ("qwen3_5_moe",)
    ARCHITECTURES = ("Qwen3_5MoeForConditionalGeneration",)
    KEYS = f"{Qwen35WithTower.KEYS} {Qwen35Moe.KEYS}"
    STACKED: ClassVar = Qwen35Moe.STACKED
    TEXT = Qwen35Moe
