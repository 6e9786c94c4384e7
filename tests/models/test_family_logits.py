"""Every family, compiled, gives the logits that transformers gave, however a prompt is cut."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import compiled

from sterna.models.params import stored_weights
from sterna.quantize.scheme import scheme
from sterna.runtime.cpu import CpuExecutable

CLOSE = 1e-4  # float32 against float32 of another order
PAGES = range(tiny.CONTEXT // 16)
QUICK = ("qwen3", "gemma3", "gpt2")  # head norms, several kinds of layers, learned positions


def weights(variant: str) -> tiny.Weights:
    """What a checkpoint of the variant holds, by the names and shapes that the family wants."""
    found = {}
    for weight in stored_weights(tiny.MODELS[variant], scheme("q0f32")):
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True):
            found[name] = tiny.draw(name, shape)
    return found


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_names_and_shapes_are_those_of_transformers(variant: str) -> None:
    assert tiny.checksum(weights(variant)) == tiny.golden(variant)[1]


def marked() -> list[object]:
    return [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in tiny.VARIANTS]


@pytest.fixture(scope="module", params=marked())
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, CpuExecutable]]:
    variant = request.param
    root = tmp_path_factory.mktemp(variant)
    sizes = {"context_window_size": tiny.CONTEXT, "prefill_chunk_size": 40, "max_batch_size": 2}
    made = compiled.build_drawn(root, tiny.VARIANTS[variant], weights(variant), "q0f32", **sizes)
    loaded = made.load(num_pages=2 * len(PAGES))
    yield variant, loaded
    loaded.close()


@pytest.mark.parametrize("chunk", [40, 13, 1])
def test_logits(model: tuple[str, CpuExecutable], chunk: int) -> None:
    variant, executable = model
    chunks = compiled.cut(len(tiny.PROMPT), chunk)
    found = compiled.all_logits(executable, tiny.PROMPT, chunks, PAGES)
    gap = np.abs(found[list(tiny.POSITIONS)] - tiny.golden(variant)[0]).max()
    assert gap < CLOSE


def test_two_together_are_each_alone(model: tuple[str, CpuExecutable]) -> None:
    _, executable = model
    size = executable.manifest.kv_cache.page_size
    pages = [list(PAGES), [p + len(PAGES) for p in PAGES]]
    parts = [
        compiled.Part(tiny.PROMPT[:23], 0, pages[0]),
        compiled.Part(tiny.PROMPT[5:22], 0, pages[1]),
    ]
    alone = [executable.step(compiled.step_input([part], size))[0].copy() for part in parts]
    both = executable.step(compiled.step_input(parts, size))
    assert both[0].tobytes() == alone[0].tobytes()
    assert both[1].tobytes() == alone[1].tobytes()
