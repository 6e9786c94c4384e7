"""A tiny Hugging Face folder to convert: random weights, the demo model's tokenizer."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny

from sterna import demo


def write_source(folder: Path, **changes: object) -> Path:
    """Write the folder; `changes` go to its config.json and its weights."""
    config = {**tiny.VARIANTS["llama2-gqa"], **changes}
    tiny.write_folder(folder, config, tiny.weights(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(demo.FOLDER / name, folder / name)
    return folder
