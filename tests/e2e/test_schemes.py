"""Every scheme computes with the weights that its folder holds, dequantized, and no others.

The reference is a float64 forward pass over what `dequantize` gives. Nothing in the model is a
multiple of a group, a tile or a vector.
"""

from __future__ import annotations

from typing import Any

import llama_reference
import numpy as np
import pytest
from compiled import Tiny, all_logits, cut, tiny
from numpy.typing import NDArray

from sterna.base.dtype import BF16, F16, F32
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.models.params import stored_weights
from sterna.models.rope_options import rope_options
from sterna.models.rope_scaling import inv_freq
from sterna.quantize.pack import dequantize
from sterna.quantize.scheme import SCHEMES

UNTIED = {
    **tiny.VARIANTS["parameters-default"],
    "attention_bias": True,
    "hidden_size": 72,
    "intermediate_size": 172,
    "vocab_size": 157,
}
CONFIGS = {"untied": UNTIED, "tied": {**UNTIED, "tie_word_embeddings": True}}
# All is float32 but the keys and values in the cache. Where float32 and float64 round one of them
# to different neighbours, the logits move by about a thousandth of that dtype's precision.
CLOSE = {F32: 1e-5, F16: 5e-4, BF16: 4e-3}
PROMPT = tiny.PROMPTS[-1]
PAGES = range(5)
# Tied heads read the embedding's layout, which differs from a linear's in KN schemes only.
TIED = ("q0f16", "q4f16_1", "q4f16_0", "q4f16_0z", "q3f16_1z")
QUICK = {("q4f16_1", "untied"), ("q4f16_1z", "untied"), ("q4f16_0", "tied"), ("q0bf16", "untied")}


def cases() -> list[Any]:
    pairs = [(scheme, kind) for scheme in SCHEMES for kind in CONFIGS]
    pairs = [(s, kind) for s, kind in pairs if kind == "untied" or s in TIED]
    return [p if p in QUICK else pytest.param(*p, marks=pytest.mark.slow) for p in pairs]


@pytest.mark.parametrize(("scheme", "kind"), cases())
def test_logits_are_those_of_the_dequantized_weights(
    tiny_model: Tiny, scheme: str, kind: str
) -> None:
    config = CONFIGS[kind]
    compiled = tiny_model(config, scheme)
    tensors = {name: ref.read() for name, ref in read_mlc_folder(compiled.folder).tensors.items()}
    weights = whole_weights(config, scheme, tensors)
    frequencies = inv_freq(rope_options(config), tiny.head_dim(config))
    cached_as = SCHEMES[scheme].compute.numpy
    wanted = llama_reference.forward(config, weights, PROMPT, frequencies, cached_as)
    model = compiled.load(num_pages=len(PAGES))
    for chunk in (64, 16, 1):
        gap = np.abs(all_logits(model, PROMPT, cut(len(PROMPT), chunk), PAGES) - wanted).max()
        assert gap < CLOSE[SCHEMES[scheme].compute], f"in steps of {chunk}"
    model.close()
    source = tiny.weights(config)
    if scheme != "q0f32":  # the bound tells these weights from the checkpoint's
        other = llama_reference.forward(config, source, PROMPT, frequencies, cached_as)
        assert np.abs(other - wanted).max() > 2 * CLOSE[SCHEMES[scheme].compute]


def whole_weights(
    config: dict[str, object], scheme: str, tensors: dict[str, NDArray[Any]]
) -> tiny.Weights:
    """The folder's weights under the checkpoint's names, unstacked, as float32."""
    found: tiny.Weights = {}
    for weight in stored_weights(config, SCHEMES[scheme]):
        parts = {part: tensors[weight.tensor_name(part)] for part in weight.parts}
        if "q_weight" in parts:
            whole = dequantize(parts, weight.scheme, weight.shape)
        else:
            (whole,) = (part.astype(np.float32) for part in parts.values())
        ends = np.cumsum([shape[0] for shape in weight.source_shapes])
        found |= dict(zip(weight.sources, np.split(whole, ends[:-1]), strict=True))
    assert {name: w.shape for name, w in found.items()} == tiny.shapes(config)
    return found
