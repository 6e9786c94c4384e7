"""The fixture that writes tiny source folders."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from source_folder import Make, add_tokenizer, tiny


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(variant or config, name="SRC", tensors=None, ...) writes a source folder."""

    def build(
        config: str | Mapping[str, object] = "llama2-gqa",
        name: str = "SRC",
        tensors: tiny.Weights | None = None,
        **options: object,
    ) -> Path:
        config = tiny.VARIANTS[config] if isinstance(config, str) else config
        folder = tmp_path / name
        weights = tiny.weights(config) if tensors is None else tensors
        tiny.write_folder(folder, config, weights, **options)
        add_tokenizer(folder)
        return folder

    return build
