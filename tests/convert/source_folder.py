"""Source folders that conversion tests start from, and what they ask of a folder."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "tests" / "models"))

import tiny  # noqa: E402  (beside the tests of the family whose models it makes)

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# Every K is a multiple of 128, so that each scheme's groups are full.
ROUND: dict[str, object] = {
    **tiny.VARIANTS["llama2-gqa"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
}

Make = Callable[..., Path]


def add_tokenizer(folder: Path) -> None:
    for name in TOKENIZER:
        shutil.copy(REPO / "src" / "sterna" / "demo" / name, folder / name)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
