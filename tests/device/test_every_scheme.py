"""A tiny model in each scheme chooses the CPU's tokens on each kind of device that runs here.

What a device chose goes to the CPU too, so both have always seen the same: its choice must be the
CPU's, or one whose logit lies within 1e-3 of that of the CPU's. `test_whole_models` compares all
logits, of fewer pairs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

from compiled import Compiled, Part, step_input, tiny
from conformance import TARGETS
from test_whole_models import OPTIONS, PAGES, SHAPE, converted, on_target

from sterna.base.artifact import CompileOptions
from sterna.base.target import parse_target
from sterna.compiler import compile_model
from sterna.quantize.scheme import SCHEMES

NAMES = ("opencl", "cuda:source", "rocm:source", "metal", "vulkan", "webgpu")
PROMPT = [3 + 7 * i % 61 for i in range(21)]
TOKENS = 12
NEAR = 1e-3  # of two logits
PLACES = [3, 11]


@dataclass(frozen=True)
class Made:
    """A model's folder, and its library for the CPU."""

    folder: Path
    plain: Path


@pytest.fixture(scope="module")
def models() -> dict[str, Made]:
    """By scheme, made when first asked for."""
    return {}


def model(made: dict[str, Made], scheme: str, root: Path) -> Made:
    if scheme not in made:
        folder = converted(root / f"every-{scheme}", SHAPE, tiny.weights(SHAPE), scheme)
        plain = root / f"every-{scheme}.so"
        options = CompileOptions(**OPTIONS, activations="f32")
        compile_model(folder, parse_target("cpu"), plain, options=options)
        made[scheme] = Made(folder, plain)
    return made[scheme]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_cpus_tokens(
    scheme: str, name: str, models: dict[str, Made], tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    device = TARGETS[name]()
    made = model(models, scheme, tmp_path_factory.getbasetemp())
    ours = on_target(made.folder, name, device, tmp_path)
    theirs = Compiled(made.folder, made.plain).load(num_pages=PAGES)
    size, part = ours.manifest.kv_cache.page_size, Part(PROMPT, 0, PLACES)
    assert size == theirs.manifest.kv_cache.page_size
    for at in range(len(PROMPT), len(PROMPT) + TOKENS):
        chosen = int(ours.step(step_input([part], size)).argmax())
        logits = theirs.step(step_input([part], size))[0]
        assert np.ptp(logits) > 100 * NEAR
        assert logits[chosen] >= logits.max() - NEAR, f"token {at}"
        part = Part([chosen], at, PLACES)
    ours.close()
    theirs.close()
