"""Families that embed give the hidden states that transformers gave, alone and beside others."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny
from test_family_logits import CLOSE, PAGES, weights
from test_family_schemes import CLOSE as NEAR
from test_family_schemes import QUANTIZED, restored

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import compiled

from sterna.base.errors import UnsupportedModel, UsageError
from sterna.models import family
from sterna.quantize.scheme import scheme
from sterna.runtime.cpu import CpuExecutable


def load(root: Path, variant: str, tensors: tiny.Weights, name: str) -> CpuExecutable:
    sizes = {"context_window_size": tiny.CONTEXT, "max_batch_size": 2}
    made = compiled.build_drawn(root, tiny.EMBEDDING[variant], tensors, name, **sizes)
    return made.load(num_pages=2 * len(PAGES))


@pytest.fixture(scope="module", params=tiny.EMBEDDING)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, CpuExecutable]]:
    variant = request.param
    loaded = load(tmp_path_factory.mktemp(variant), variant, weights(variant), "q0f32")
    yield variant, loaded
    loaded.close()


def states(model: CpuExecutable, rows: Sequence[int]) -> compiled.Logits:
    size = model.manifest.kv_cache.page_size
    part = compiled.Part(tiny.PROMPT, 0, list(PAGES))
    return model.step(compiled.step_input([part], size, rows)).copy()


@pytest.mark.parametrize("variant", tiny.EMBEDDING)
def test_names_and_shapes_are_those_of_transformers(variant: str) -> None:
    assert tiny.checksum(weights(variant)) == tiny.golden(variant)[1]


def test_states(model: tuple[str, CpuExecutable]) -> None:
    variant, executable = model
    found = states(executable, range(len(tiny.PROMPT)))
    assert found.shape == (len(tiny.PROMPT), tiny.EMBEDDING[variant]["hidden_size"])
    gap = np.abs(found[list(tiny.POSITIONS)] - tiny.golden(variant)[0]).max()
    assert gap < CLOSE


def test_two_together_are_each_alone(model: tuple[str, CpuExecutable]) -> None:
    _, executable = model
    size = executable.manifest.kv_cache.page_size
    parts = [
        compiled.Part(tiny.PROMPT[:23], 0, list(PAGES)),
        compiled.Part(tiny.PROMPT[5:22], 0, [p + len(PAGES) for p in PAGES]),
    ]
    rows = [list(range(23)), list(range(17))]
    alone = [
        executable.step(compiled.step_input([part], size, wanted)).copy()
        for part, wanted in zip(parts, rows, strict=True)
    ]
    both = executable.step(compiled.step_input(parts, size, range(40)))
    assert both.tobytes() == b"".join(a.tobytes() for a in alone)


def test_an_encoder_sees_what_follows(model: tuple[str, CpuExecutable]) -> None:
    variant, executable = model
    size = executable.manifest.kv_cache.page_size
    short, long = (compiled.Part(tiny.PROMPT[:n], 0, list(PAGES)) for n in (10, 11))
    first = executable.step(compiled.step_input([short], size, [0])).copy()
    second = executable.step(compiled.step_input([long], size, [0]))
    causal = family(tiny.EMBEDDING[variant]).read_config(tiny.EMBEDDING[variant]).causal
    assert (first.tobytes() == second.tobytes()) == causal


def marked() -> list[object]:
    """Each scheme with one of the models, by turns."""
    variants = list(tiny.EMBEDDING)
    pairs = [(variants[i % len(variants)], name) for i, name in enumerate(QUANTIZED)]
    return [p if p[1] == "q4f16_1" else pytest.param(*p, marks=pytest.mark.slow) for p in pairs]


@pytest.mark.parametrize(("variant", "name"), marked())
def test_quantized_states_are_those_of_the_restored_weights(
    variant: str, name: str, tmp_path: Path
) -> None:
    every = range(len(tiny.PROMPT))
    packed = load(tmp_path / "packed", variant, weights(variant), name)
    found = states(packed, every)
    packed.close()
    plain = load(tmp_path / "plain", variant, restored(variant, name), "q0f32")
    wanted = states(plain, every)
    plain.close()
    assert np.abs(found - wanted).max() < NEAR[scheme(name).compute.name] * wanted.std()


def test_an_encoder_takes_a_text_as_a_whole(tmp_path: Path) -> None:
    sizes = {"context_window_size": tiny.CONTEXT, "prefill_chunk_size": 40}
    with pytest.raises(UsageError, match="takes a text as a whole"):
        compiled.build_drawn(tmp_path, tiny.BERT, weights("bert"), "q0f32", **sizes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sentence_pooling": "max"}, "pooling 'max' is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"architectures": ["BertForSequenceClassification"]}, "BertForSequenceClassification"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(UnsupportedModel, match=why):
        family(tiny.BERT).read_config({**tiny.BERT, **change})
