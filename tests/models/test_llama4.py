"""Llama 4 as Meta publishes it: its text is a section of the config, beside a tower for images."""

from __future__ import annotations

import sys
from pathlib import Path

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
from sterna.models import family
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq

TEXT = {k: v for k, v in tiny_families.VARIANTS["llama4"].items() if k != "architectures"}
WHOLE = {
    "model_type": "llama4",
    "architectures": ["Llama4ForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 8},
    "image_token_index": 60,
    "boi_token_index": 61,
    "eoi_token_index": 62,
    "tie_word_embeddings": False,
}
TOWER = {"vision_model.class_embedding": (8,), "multi_modal_projector.linear_1.weight": (48, 8)}


@pytest.mark.parametrize(
    ("body", "head", "tower"),
    [
        ("language_model.model.", "language_model.lm_head.", ""),
        ("model.language_model.", "lm_head.", "model."),  # as transformers 5 writes it
    ],
)
def test_its_text_is_converted_as_if_it_were_alone(
    body: str, head: str, tower: str, tmp_path: Path
) -> None:
    plain = weights("llama4")
    named = {
        body + name.removeprefix("model.") if name.startswith("model.")
        else head + name.removeprefix("lm_head."): weight
        for name, weight in plain.items()
    }  # fmt: skip
    named |= {f"{tower}{n}": np.ones(shape, np.float32) for n, shape in TOWER.items()}
    tiny.write_folder(tmp_path / "text", tiny_families.VARIANTS["llama4"], plain)
    tiny.write_folder(tmp_path / "whole", WHOLE, named)
    for name in ("text", "whole"):
        add_tokenizer(tmp_path / name)
        for make in (convert_weight, gen_config):
            make(tmp_path / name, tmp_path / "out" / name, quantization="q0f32")
    alone, found = (read_mlc_folder(tmp_path / "out" / n).tensors for n in ("text", "whole"))
    assert len(found) == len(alone)
    for name, tensor in alone.items():
        own = name if name.startswith("lm_head") else name.removeprefix("model.")
        prefix = "language_model." if own == name else "language_model.model."
        assert found[prefix + own].read().tobytes() == tensor.read().tobytes()


def test_what_is_not_text_of_llama_4_is_refused() -> None:
    read = family(WHOLE).read_config
    assert read(WHOLE) == family(TEXT).read_config(TEXT)
    for changes, error, words in (
        ({"text_config": {**TEXT, "model_type": "llama"}}, UnsupportedModel, "model_type"),
        ({"text_config": None}, CheckpointError, "text_config"),
        ({"pixels": 3}, UnsupportedModel, "pixels"),
    ):
        with pytest.raises(error, match=words):
            read({**WHOLE, **changes})


def test_the_first_files_spelling() -> None:
    """Tuning is 4 there, and no wave lies between those that are kept and those that are slowed."""
    tuned = {**TEXT, "attn_temperature_tuning": 4}
    assert family(TEXT).read_config(tuned).temper == family(TEXT).read_config(TEXT).temper
    scaling = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0,
               "high_freq_factor": 1.0, "original_max_position_embeddings": 8192}  # fmt: skip
    plain, _ = inv_freq(rope_options({"rope_theta": 5e5}), 128)
    found, _ = inv_freq(rope_options({"rope_theta": 5e5, "rope_scaling": scaling}), 128)
    slow = 2 * np.pi / plain > 8192
    assert 0 < slow.sum() < 64
    np.testing.assert_array_equal(found, np.where(slow, plain / np.float32(16), plain))
