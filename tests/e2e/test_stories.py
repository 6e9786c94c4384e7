"""A trained model tells its stories token for token, and is as sure of texts as it should be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from compiled import Stories, greedy

from sterna.quality import agreement, likelihood
from sterna.quantize.scheme import SCHEMES
from sterna.text.tokenizer import Tokenizer

LONGEST = 256


@pytest.fixture(scope="module")
def reference(shared: Path) -> dict:
    path = shared / "models" / "stories260K-hf" / "reference.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def texts(shared: Path) -> dict[str, list[list[int]]]:
    """Documents under the reference's names, encoded with the start token and cut."""
    tokenizer = Tokenizer.load(shared / "models" / "stories260K-hf")
    found = json.loads((shared / "text" / "tinystories_100.json").read_text(encoding="utf-8"))
    plays = (shared / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    named = {
        "nll_tinystories_first25": found[:25],
        "nll_tinyshakespeare_first20paragraphs": plays[:20],
    }
    return {
        name: [tokenizer.encode(text)[:LONGEST] for text in documents]
        for name, documents in named.items()
    }


def test_greedy_stories_token_for_token(stories: Stories, reference: dict) -> None:
    model = stories("q0f32").load()
    for story in reference["gen"]:
        wanted = story["greedy_new_ids"]
        assert greedy(model, story["prompt_ids"], len(wanted)) == wanted
    model.close()


@pytest.mark.parametrize(
    "name", ["nll_tinystories_first25", "nll_tinyshakespeare_first20paragraphs"]
)
def test_likelihood_of_texts(
    stories: Stories, reference: dict, texts: dict[str, list[list[int]]], name: str
) -> None:
    wanted = reference[name]
    model = stories("q0f32").load()
    found = likelihood(model, texts[name])
    model.close()
    assert (found.documents, found.tokens) == (wanted["documents"], wanted["scored_tokens"])
    assert found.mean_nll == pytest.approx(wanted["mean_nll_nats"], abs=1e-4)
    assert found.perplexity == pytest.approx(wanted["perplexity"], rel=1e-4)


# By bits and variant: the most that perplexity of stories may grow over q0f32's, and the most KL
# divergence. Measured in benchmarks/results/quality.json; the bounds leave a little room.
WORST = {
    "q0f16": (1.001, 1e-5),
    "q0bf16": (1.001, 5e-4),
    "q8_1": (1.002, 1e-3),
    "q8_1z": (1.002, 1e-3),
    "q4_1": (1.21, 0.19),
    "q4_1z": (1.13, 0.135),
    "q4_0": (1.27, 0.23),
    "q4_0z": (1.18, 0.18),
    "q3_1": (4.6, 1.65),
    "q3_1z": (2.3, 0.84),
}


def worst(scheme: str) -> tuple[float, float]:
    return WORST[scheme if scheme in WORST else re.sub("b?f(16|32)", "", scheme)]


QUANTIZED = [name for name in SCHEMES if name != "q0f32"]


@pytest.mark.parametrize(
    "scheme",
    [n if n == "q4f16_1" else pytest.param(n, marks=pytest.mark.slow) for n in QUANTIZED],
)
def test_what_a_scheme_costs(
    stories: Stories, texts: dict[str, list[list[int]]], scheme: str
) -> None:
    source, model = stories("q0f32").load(), stories(scheme).load()
    documents = texts["nll_tinystories_first25"]
    growth = likelihood(model, documents).perplexity / likelihood(source, documents).perplexity
    compared = agreement(source, model, documents)
    most_growth, most_kl = worst(scheme)
    assert 0.999 < growth < most_growth
    assert 0 < compared.mean_kl < most_kl
    assert compared.positions == sum(map(len, documents))
    source.close()
    model.close()


def test_a_model_agrees_with_itself(stories: Stories, texts: dict[str, list[list[int]]]) -> None:
    one, other = stories("q0f32").load(), stories("q0f32").load(threads=2)
    compared = agreement(one, other, texts["nll_tinyshakespeare_first20paragraphs"])
    assert (compared.top1, compared.mean_kl, compared.max_kl) == (1, 0, 0)
    one.close()
    other.close()
