"""Models that take images give what transformers gave, however a prompt is cut, alone or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny
import tiny_vision as vision
from test_family_schemes import CLOSE as NEAR
from test_family_schemes import QUANTIZED, on_disk

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import compiled

from sterna.base.errors import CheckpointError, RequestError, UnsupportedModel
from sterna.models import family
from sterna.models.params import stored_weights
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import scheme
from sterna.runtime.cpu import CpuExecutable
from sterna.runtime.executable import StepInput

CLOSE = 1e-4  # float32 against float32 of another order
CONTEXT = 64
PAGES = range(CONTEXT // 16)
SIZES = {"context_window_size": CONTEXT, "prefill_chunk_size": 40, "max_batch_size": 2}


def weights(variant: str) -> tiny.Weights:
    """What a checkpoint of the variant holds, by the names and shapes that the family wants."""
    found = {}
    for weight in stored_weights(vision.VARIANTS[variant], scheme("q0f32")):
        for name, shape in zip(weight.sources, weight.source_shapes, strict=True):
            found[name] = tiny.draw(name, shape)
    return found


def load(root: Path, variant: str, tensors: tiny.Weights, name: str) -> CpuExecutable:
    made = compiled.build_drawn(root, vision.VARIANTS[variant], tensors, name, **SIZES)
    return made.load(num_pages=3 * len(PAGES))


@pytest.fixture(scope="module", params=vision.VARIANTS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, CpuExecutable]]:
    variant = request.param
    loaded = load(tmp_path_factory.mktemp(variant), variant, weights(variant), "q0f32")
    yield variant, loaded
    loaded.close()


def seen(model: CpuExecutable) -> list[compiled.Logits]:
    return [model.see(vision.patches(pixels)) for pixels in vision.images()]


def with_rows(
    batch: StepInput, starts: Sequence[tuple[int, int]], rows: Sequence[compiled.Logits]
) -> StepInput:
    """The batch with the images' rows; `starts` are (place in the step, row of the image)."""
    given = np.zeros((len(batch.tokens), rows[0].shape[1]), np.float32)
    where = np.zeros(len(batch.tokens), np.int32)
    for (at, first), own in zip(starts, rows, strict=True):
        for i in range(vision.TOKENS):
            place = at + i - first
            if 0 <= place < len(where):
                given[place], where[place] = own[i], 1
    return replace(batch, given=given, is_given=where)


def logits(model: CpuExecutable, chunk: int, pages: Sequence[int] = PAGES) -> compiled.Logits:
    """At all positions of the prompt with both images."""
    rows, size = seen(model), model.manifest.kv_cache.page_size
    found = []
    for start in range(0, len(vision.PROMPT), chunk):
        tokens = vision.PROMPT[start : start + chunk]
        for first in range(0, len(tokens), compiled.ROWS):
            wanted = range(first, min(first + compiled.ROWS, len(tokens)))
            batch = compiled.step_input([compiled.Part(tokens, start, pages)], size, wanted)
            batch = with_rows(batch, [(p - start, 0) for p in vision.PLACES], rows)
            found.append(model.step(batch).copy())
    return np.concatenate(found)


@pytest.mark.parametrize("variant", vision.VARIANTS)
def test_names_and_shapes_are_those_of_transformers(variant: str) -> None:
    assert tiny.checksum(weights(variant)) == vision.golden(variant).checksum


def test_rows_of_an_image(model: tuple[str, CpuExecutable]) -> None:
    variant, executable = model
    first = seen(executable)[0]
    assert np.abs(first - vision.golden(variant).rows).max() < CLOSE
    again = seen(executable)  # another image was looked at in between
    assert again[0].tobytes() == first.tobytes() != again[1].tobytes()


@pytest.mark.parametrize("chunk", [40, 13, 1])
def test_logits(model: tuple[str, CpuExecutable], chunk: int) -> None:
    variant, executable = model
    found = logits(executable, chunk)
    gap = np.abs(found[list(vision.POSITIONS)] - vision.golden(variant).logits).max()
    assert gap < CLOSE
    assert found.tobytes() == logits(executable, len(PAGES) * 5).tobytes()
