"""Libraries that several tests share, compiled once a test process, when first asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from compiled import Compiled, Stories, Tiny, Variant, build, build_tiny, tiny

SMALL = {"prefill_chunk_size": 64, "max_batch_size": 8}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Compile random weights of a config: `tiny_model(config, "q0f32", max_batch_size=2)`."""
    made: dict[str, Compiled] = {}

    def get(config: Mapping[str, object], quantization: str, **options: int) -> Compiled:
        key = json.dumps([config, quantization, options], sort_keys=True)
        if key not in made:
            root = tmp_path_factory.mktemp(quantization)
            made[key] = build_tiny(root, config, quantization, **SMALL | options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def variant(tiny_model: Tiny) -> Variant:
    """Compile a variant of `tiny` in q0f32: `variant("llama1", context_window_size=70)`."""
    return lambda name, **options: tiny_model(tiny.VARIANTS[name], "q0f32", **options)


@pytest.fixture(scope="session")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Stories:
    """Compile the stories model, trained on TinyStories, in a scheme."""
    made: dict[str, Compiled] = {}

    def get(quantization: str) -> Compiled:
        if quantization not in made:
            output = tmp_path_factory.mktemp(f"stories-{quantization}") / "model"
            made[quantization] = build(
                shared / "models" / "stories260K-hf", output, quantization, **SMALL
            )
        return made[quantization]

    return get
