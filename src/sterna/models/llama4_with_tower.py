"""Llama 4 as Meta publishes it, beside a tower for images: the text model alone is computed.

The text model's config is a section of config.json, and the tower's tensors are passed over.
"""

from __future__ import annotations

from typing import ClassVar

from sterna.models.config import Config, DecoderConfig, Fields, section
from sterna.models.family import Names
from sterna.models.llama4 import Llama4


class Llama4WithTower(Llama4):
    """Tensors of the text model have the name of that section before them."""

    MODEL_TYPES = ("llama4",)
    ARCHITECTURES = ("Llama4ForConditionalGeneration",)
    KEYS = (
        f"{Llama4.KEYS} text_config vision_config image_token_index boi_token_index eoi_token_index"
    )
    NAMES: ClassVar[Names] = {
        **Llama4.NAMES,
        "model": "language_model.model",
        "lm_head": "language_model.lm_head",
    }
    PREFIXES: ClassVar[Names] = {  # of transformers 5
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
    IGNORED = (*Llama4.IGNORED, "*vision_model.*", "*multi_modal_projector.*")

    @classmethod
    def read_config(cls, config: Config) -> DecoderConfig:
        f = Fields(config)
        f.refuse_architectures_but(cls.ARCHITECTURES)
        f.refuse_others((*cls.KEYS.split(), "tie_word_embeddings"))
        text = Fields(section(config, "text_config"))
        text.refuse_unless("model_type", ["llama4_text"])
        return super().read_config({**text.config, "architectures": None})
