"""A trained model tells its stories token for token, and is as sure of texts as it should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compiled import Stories, greedy

from sterna.quality import likelihood
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
