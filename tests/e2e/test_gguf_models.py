"""GGUF files run on their own blocks: logits are those of the weights that `gguf` dequantizes."""

from __future__ import annotations

import sys
from pathlib import Path

import llama_reference
import numpy as np
import pytest
from compiled import all_logits, build, cut, greedy, tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "convert"))

pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

from gguf_source import WHOLE, write_gguf

from sterna.base.dtype import F16
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq

PROMPT = tiny.PROMPTS[-1]
PAGES = range(5)
SMALL = {"prefill_chunk_size": 64, "max_batch_size": 4}
MIXTURES = {
    "q4_0, q8_0": {"": "Q4_0", "v_proj": "Q8_0", "embed": "Q8_0", "lm_head": "Q8_0"},
    # As llama.cpp mixes: some layers have more bits than others.
    "k": {
        "": "Q4_K", "v_proj": "Q6_K", "1.mlp.down": "Q6_K", "0.self_attn.v": "Q5_K",
        "embed": "Q4_K", "lm_head": "Q6_K",
    },
    "low": {"": "Q3_K", "o_proj": "Q2_K", "embed": "Q2_K", "lm_head": "Q5_K"},
    "others": {
        "": "Q5_0", "q_proj": "Q4_1", "k_proj": "Q5_1", "v_proj": "IQ4_NL", "down": "MXFP4",
        "embed": "F16", "lm_head": "BF16",
    },
}  # fmt: skip


def chosen(mixture: dict[str, str], name: str) -> str:
    """The type of the last pattern that the name contains."""
    return [kind for part, kind in mixture.items() if part in name][-1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "title", ["k", *(pytest.param(t, marks=pytest.mark.slow) for t in MIXTURES if t != "k")]
)
def test_logits_are_those_of_the_files_weights(title: str, tmp_path: Path) -> None:
    mixture = MIXTURES[title]
    weights = write_gguf(tmp_path / "m.gguf", WHOLE, lambda name: chosen(mixture, name))
    compiled = build(tmp_path / "m.gguf", tmp_path / "out", "stored", **SMALL)
    frequencies = inv_freq(rope_options(WHOLE), tiny.head_dim(WHOLE))
    wanted = llama_reference.forward(WHOLE, weights, PROMPT, frequencies, F16.numpy)
    model = compiled.load(num_pages=len(PAGES))
    whole = all_logits(model, PROMPT, cut(len(PROMPT), 64), PAGES)
    assert np.abs(whole - wanted).max() < 2e-3 * np.abs(wanted).max()
    for chunk in (16, 1):  # and not a bit depends on how many rows are computed together
        found = all_logits(model, PROMPT, cut(len(PROMPT), chunk), PAGES)
        np.testing.assert_array_equal(found, whole)
    assert greedy(model, PROMPT[:5], 3)[0] == int(wanted[4].argmax())
    model.close()
