"""Tiny random-weight models that take images, and what transformers gave for one prompt.

In: a variant's name. Out: its config.json as a dict, float32 weights under the checkpoint's names,
the pixels of two images, a prompt with both, and stored logits at a few positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_families as tiny
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

GOLDENS = Path(__file__).parent / "goldens" / "vision"
SIZE, PATCH, IMAGE_TOKEN = 20, 5, 63
TOKENS = (SIZE // PATCH) ** 2  # of a prompt that an image takes
PROMPT = (1, 9, *(IMAGE_TOKEN,) * TOKENS, 33, 12, *(IMAGE_TOKEN,) * TOKENS, 20, 7, 44, 5)
PLACES = (2, 4 + TOKENS)  # of the images
POSITIONS = (0, 1, 2, 9, 17, 18, 20, 36, len(PROMPT) - 1)

TEXT = {k: v for k, v in tiny.BASE.items() if k not in ("torch_dtype", "tie_word_embeddings")}
LLAVA: dict[str, object] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": IMAGE_TOKEN,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 64,
    "text_config": {"model_type": "llama", **TEXT},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
    },
}
VARIANTS: dict[str, dict[str, object]] = {"llava": LLAVA}


@dataclass(frozen=True)
class Golden:
    """Logits at POSITIONS, the rows of the first image, a checksum of the weights."""

    logits: NDArray[np.float32]
    rows: NDArray[np.float32]
    checksum: int


def golden(variant: str) -> Golden:
    with np.load(GOLDENS / f"{variant}.npz") as stored:
        return Golden(stored["logits"], stored["rows"], int(stored["weights_crc32"]))


# As a checkpoint's preprocessor_config.json has it.
PREPROCESSOR: dict[str, object] = {
    "crop_size": {"height": SIZE, "width": SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": SIZE},
}


def drawn() -> list[NDArray[np.uint8]]:
    """Pictures [height, width, 3]: lying, standing, small, square, of odd sizes."""
    sizes = [(57, 83), (90, 41), (7, 13), (20, 20), (64, 64)]
    return [
        np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        for i, size in enumerate(sizes)
    ]


def prepared() -> list[Pixels]:
    """What transformers' processor made of those, [3, SIZE, SIZE] each."""
    with np.load(GOLDENS / "clip_processor.npz") as stored:
        return list(stored["pixels"])


def images() -> list[Pixels]:
    """Two, float32 [3, SIZE, SIZE], as a processor would have normalized them."""
    return [tiny.draw(name, (3, SIZE, SIZE)) * 2.0 for name in ("first", "second")]


def patches(pixels: Pixels) -> Pixels:
    """[patches, channels * PATCH * PATCH], the first of the upper left corner, row by row."""
    side = SIZE // PATCH
    cut = pixels.reshape(3, side, PATCH, side, PATCH).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(cut).reshape(side * side, -1)
