"""Tiny random-weight models that take images of any size, and what transformers gave for them.

In: a variant's name. Out: its config.json as a dict, the patches of two images, a prompt with both,
the positions of its tokens, and stored logits at a few places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tiny_families as tiny
from numpy.typing import NDArray
from tiny_vision import GOLDENS

Patches = NDArray[np.float32]
Grid = tuple[int, int]

PATCH, MERGE, FRAMES, IMAGE_TOKEN = 4, 2, 2, 63
WIDTH = 3 * FRAMES * PATCH**2
GRIDS: tuple[Grid, Grid] = ((3, 5), (4, 1))  # of squares: windows whole and cut, more than one page
TOKENS = tuple(rows * columns for rows, columns in GRIDS)
PROMPT = (1, 9, *(IMAGE_TOKEN,) * TOKENS[0], 33, 12, *(IMAGE_TOKEN,) * TOKENS[1], 20, 7, 44, 5)
PLACES = (2, 4 + TOKENS[0])  # of the images
POSITIONS = (0, 1, 2, 9, 16, 17, 18, 19, 22, 23, len(PROMPT) - 1)

VISION: dict[str, object] = {
    "depth": 4,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_heads": 2,
    "in_chans": 3,
    "out_hidden_size": 64,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "spatial_patch_size": PATCH,
    "window_size": 2 * MERGE * PATCH,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": 2,
    "temporal_patch_size": FRAMES,
}
# As the published ones are: the text model's config is the top.
QWEN25VL: dict[str, object] = {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "vision_start_token_id": 60,
    "vision_end_token_id": 61,
    "vision_token_id": 62,
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 59,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_sliding_window": False,
    "vision_config": VISION,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vocab_size": 64,
}
# Its tower has no windows, and other layers.
QWEN2VL: dict[str, object] = {
    **QWEN25VL,
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "mlp_ratio": 2,
        "num_heads": 2,
        "in_chans": 3,
        "hidden_size": 64,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "spatial_patch_size": PATCH,
        "temporal_patch_size": FRAMES,
    },
}
VARIANTS: dict[str, dict[str, object]] = {"qwen2_5_vl": QWEN25VL, "qwen2_vl": QWEN2VL}


@dataclass(frozen=True)
class Golden:
    """Logits at POSITIONS, and of a text alone; rows of both images; a checksum of the weights."""

    logits: NDArray[np.float32]
    text: NDArray[np.float32]
    rows: tuple[NDArray[np.float32], ...]
    positions: NDArray[np.int32]
    checksum: int


TEXT = (1, 5, 7, 11, 40, 2, 9)


def golden(variant: str) -> Golden:
    with np.load(GOLDENS / f"{variant}.npz") as stored:
        rows = tuple(stored[f"rows_{i}"] for i in range(len(GRIDS)))
        checksum = int(stored["weights_crc32"])
        return Golden(stored["logits"], stored["text"], rows, stored["positions"], checksum)


def images() -> list[Patches]:
    """Patches [squares * MERGE ** 2, WIDTH] of two, as a processor would have normalized them."""
    names = ("first", "second")
    return [
        tiny.draw(name, (count * MERGE**2, WIDTH)) * 2.0
        for name, count in zip(names, TOKENS, strict=True)
    ]


# As a checkpoint's preprocessor_config.json has it.
PREPROCESSOR: dict[str, object] = {
    "min_pixels": 12 * (PATCH * MERGE) ** 2,
    "max_pixels": 30 * (PATCH * MERGE) ** 2,
    "patch_size": PATCH,
    "temporal_patch_size": FRAMES,
    "merge_size": MERGE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
}


def drawn() -> list[NDArray[np.uint8]]:
    """Pictures [height, width, 3]: as they are, too large, too small, lines, odd halves."""
    sizes = [(40, 32), (57, 83), (90, 41), (7, 13), (8, 8), (4, 100), (36, 44), (20, 60)]
    return [
        np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        for i, size in enumerate(sizes)
    ]


def prepared() -> list[tuple[Grid, Patches]]:
    """What transformers' processor made of those: rows and columns of patches, and patches."""
    with np.load(GOLDENS / "qwen2_vl_processor.npz") as stored:
        count = len(drawn())
        return [(tuple(stored[f"grid_{i}"].tolist()), stored[f"patches_{i}"]) for i in range(count)]
