"""Libraries that several tests share, compiled once a test process, when first asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiled import Compiled, Stories, Variant, build, build_tiny, tiny

SMALL = {"prefill_chunk_size": 64, "max_batch_size": 8}


@pytest.fixture(scope="session")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """Compile a variant of `tiny`: `variant("llama1", "q0f32", context_window_size=70)`."""
    made: dict[object, Compiled] = {}

    def get(name: str, quantization: str = "q0f32", **options: int) -> Compiled:
        key = (name, quantization, *sorted(options.items()))
        if key not in made:
            root = tmp_path_factory.mktemp(f"{name}-{quantization}")
            made[key] = build_tiny(root, tiny.VARIANTS[name], quantization, **SMALL | options)
        return made[key]

    return get


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
