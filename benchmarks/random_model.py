"""A checkpoint of a given shape with random weights, for measuring speed without a download.

    python benchmarks/random_model.py CONFIG_JSON OUTPUT

OUTPUT becomes a Hugging Face folder: the configuration, bfloat16 weights (one block of random
numbers over and over) and the demo model's tokenizer, with words that no text has for the ids that
it lacks, so that a prompt may have any. What such a model says means nothing; how fast it says it
does.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sterna import demo
from sterna.models.params import stored_weights
from sterna.quantize.scheme import scheme

_BLOCK = 4 << 20  # weights
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

Shapes = dict[str, tuple[int, ...]]


def source_shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes of a checkpoint's tensors, as the family reads them."""
    return {
        name: shape
        for weight in stored_weights(config, scheme("q0f16"))
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True)
    }


def write_weights(path: Path, shapes: Shapes) -> None:
    """A safetensors file of bfloat16 tensors."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    drawn = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * 0.02
    block = drawn.astype(ml_dtypes.bfloat16).tobytes()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while end > 0:
            end -= file.write(block[: min(end, len(block))])


def fill_vocabulary(path: Path, size: int) -> None:
    """Gives each id below `size` that a tokenizer lacks a word, which no merge ends in."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    known = {*words.values(), *(added["id"] for added in tokenizer["added_tokens"])}
    words |= {f"<unused {i}>": i for i in range(size) if i not in known}
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def write_model(config: dict[str, Any], folder: Path) -> None:
    """The whole folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in _TOKENIZER:
        shutil.copy(demo.FOLDER / name, folder / name)
    fill_vocabulary(folder / "tokenizer.json", config["vocab_size"])
    write_weights(folder / "model.safetensors", source_shapes(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    write_model(json.loads(options.config.read_text()), options.output)


if __name__ == "__main__":
    main()
