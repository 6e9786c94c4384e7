"""GGUF files of models that take images: their texts, as the whole checkpoints compute them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="needs the gguf package, which writes the files")

from test_gguf_families import drawn, logits, write  # noqa: E402
from test_gguf_model import described  # noqa: E402
from tiny_grid_vision import QWEN2VL, QWEN25VL  # noqa: E402
from tiny_vision import LLAVA  # noqa: E402

from sterna import models  # noqa: E402
from sterna.base.errors import UnsupportedModel  # noqa: E402
from sterna.checkpoint.gguf import open_gguf  # noqa: E402
from sterna.convert.formats.gguf import stored_tensors  # noqa: E402
from sterna.convert.gguf_model import config_json  # noqa: E402

TOWERS = ("visual.", "vision_tower.", "multi_modal_projector.")


@pytest.mark.parametrize(
    ("arch", "config"),
    [("qwen2vl", QWEN2VL), ("qwen2vl", QWEN25VL), ("llama", LLAVA)],
    ids=["qwen2-vl", "qwen2.5-vl", "llava"],
)
def test_texts_are_computed_as_beside_the_tower(
    arch: str, config: dict[str, Any], tmp_path: Path
) -> None:
    weights = drawn(config)[0]
    text = {
        name.removeprefix("language_model."): weight
        for name, weight in weights.items()
        if not name.startswith(TOWERS)
    }
    assert len(text) < len(weights)
    # rope_scaling holds axes alone, which are no scaling.
    own = {**config, **config.get("text_config", {}), "rope_scaling": None}
    write(tmp_path / "m.gguf", arch, own, text)
    file = open_gguf(tmp_path / "m.gguf")
    found = {name: t.values(0, t.shape[0]) for name, t in stored_tensors(file).items()}
    made = config_json(file)
    assert models.family(made).read_config(made).vision is None
    wanted = logits(config, weights)
    assert np.abs(logits(made, found) - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_a_tower_alone_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"looks at images .* file of the text model"):
        config_json(described("clip"))
