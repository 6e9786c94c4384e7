"""Checkpoints of other programs run on their own codes: logits are those of their weights."""

from __future__ import annotations

import sys
from pathlib import Path

import llama_reference
import numpy as np
import pytest
from compiled import all_logits, build, cut, tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))

import packed_sources as made

from sterna.base.dtype import F16
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq

PROMPT = tiny.PROMPTS[-1]
PAGES = range(5)
FORMATS = {
    "gptq act-order": made.gptq(4, 32, sym=True, act_order=True),
    "awq": made.awq(64),
    "fp8 blocks": made.fp8("block"),
    "mlx": made.mlx(4, 64),
}


@pytest.mark.parametrize(
    "title", ["gptq act-order", *(pytest.param(t, marks=pytest.mark.slow) for t in [*FORMATS][1:])]
)
def test_logits_are_those_of_the_stored_weights(title: str, tmp_path: Path) -> None:
    section, module = FORMATS[title]
    key = "quantization" if title == "mlx" else "quantization_config"
    weights = made.write_packed(tmp_path / "source", section, module, key=key)
    compiled = build(
        tmp_path / "source", tmp_path / "out", "stored", prefill_chunk_size=64, max_batch_size=4
    )
    frequencies = inv_freq(rope_options(made.CONFIG), tiny.head_dim(made.CONFIG))
    wanted = llama_reference.forward(made.CONFIG, weights, PROMPT, frequencies, F16.numpy)
    model = compiled.load(num_pages=len(PAGES))
    whole = all_logits(model, PROMPT, cut(len(PROMPT), 64), PAGES)
    assert np.abs(whole - wanted).max() < 2e-3 * np.abs(wanted).max()
    for chunk in (16, 1):  # and not a bit depends on how many rows are computed together
        found = all_logits(model, PROMPT, cut(len(PROMPT), chunk), PAGES)
        np.testing.assert_array_equal(found, whole)
    model.close()
