"""Likelihood and agreement against direct arithmetic, on models that are tables."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from sterna.base.artifact import FORMAT, Dim, Entry, KVCache, Manifest, Model
from sterna.base.errors import RequestError, ShapeMismatch
from sterna.quality import agreement, likelihood, logits, most_rows, nll
from sterna.runtime.executable import StepInput

VOCAB, WINDOW, PAGE = 5, 24, 4


def entry(name: str, tokens: int, rows: int) -> Entry:
    return Entry(
        name=name,
        symbol=name,
        dims=(Dim("n", 1, tokens), Dim("r", 0, rows)),
        inputs=(),
        outputs=(),
        arena=(),
        arena_bytes=0,
        scratch_bytes=0,
        steps=(),
    )


class Table:
    """The logits after a token are a row of a table, and nothing else counts."""

    def __init__(self, table: NDArray[np.float32], rows: int = 6, num_pages: int = 8) -> None:
        self.table, self.num_pages = table, num_pages
        self.seen: list[tuple[int, int]] = []  # token and position
        self.manifest = Manifest(
            format=FORMAT,
            sterna="0",
            target="null",
            features=(),
            model=Model(
                model_type="table",
                quantization="q0f32",
                fingerprint="0",
                vocab_size=table.shape[1],
                context_window_size=WINDOW,
                prefill_chunk_size=16,
                max_batch_size=1,
            ),
            kv_cache=KVCache(
                layers=1, kv_heads=1, head_dim=1, page_size=PAGE, dtype="f32", page_bytes=32
            ),
            params=(),
            entries=(entry("prefill", 16, rows), entry("decode", 1, rows)),
            kernels=(),
        )

    def step(self, batch: StepInput) -> NDArray[np.float32]:
        assert len(batch.tokens) <= most_rows(self)
        assert len(batch.page_table) == batch.positions[-1] // PAGE + 1
        self.seen += zip(batch.tokens.tolist(), batch.positions.tolist(), strict=True)
        return self.table[batch.tokens[batch.logit_rows]]

    def copy_page(self, source: int, destination: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def table(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 2, (VOCAB, VOCAB)).astype(np.float32)


def shares(row: NDArray[np.float32]) -> list[float]:
    weights = [math.exp(x) for x in row.tolist()]
    return [w / sum(weights) for w in weights]


TEXT = [0, 3, 1, 4, 4, 2, 0, 1, 3, 3, 2, 1, 0]


@pytest.mark.parametrize("rows", [1, 5, 6, 16])
@pytest.mark.parametrize("length", [1, 2, 6, 7, 13])
def test_nll_of_each_token(rows: int, length: int) -> None:
    model, text = Table(table(1), rows), TEXT[:length]
    wanted = [-math.log(shares(model.table[a])[b]) for a, b in pairwise(text)]
    assert nll(model, text) == pytest.approx(wanted, abs=1e-12)
    assert model.seen == [(token, i) for i, token in enumerate(text)]


def test_likelihood_sums_over_documents() -> None:
    model = Table(table(2))
    found = likelihood(model, [TEXT, TEXT[:1], TEXT[3:9]])
    total = sum(nll(model, TEXT)) + sum(nll(model, TEXT[3:9]))
    assert (found.documents, found.tokens) == (3, 12 + 5)
    assert found.sum_nll == pytest.approx(total)
    assert found.perplexity == pytest.approx(math.exp(total / 17))


def test_an_even_model_has_the_perplexity_of_its_vocabulary() -> None:
    model = Table(np.full((VOCAB, VOCAB), 1000, np.float32))
    assert likelihood(model, [TEXT]).perplexity == pytest.approx(VOCAB)


def test_agreement_is_a_divergence_from_the_reference() -> None:
    one, other = Table(table(3), rows=6), Table(table(4), rows=4)
    found = agreement(one, other, [TEXT, TEXT[2:5]])
    pairs = [(shares(one.table[t]), shares(other.table[t])) for t in TEXT + TEXT[2:5]]
    kl = [sum(a * math.log(a / b) for a, b in zip(p, q)) for p, q in pairs]
    assert found.positions == 16
    assert found.mean_kl == pytest.approx(sum(kl) / 16)
    assert found.max_kl == pytest.approx(max(kl))
    assert found.top1 == sum(p.index(max(p)) == q.index(max(q)) for p, q in pairs) / 16
    assert 0 < found.top1 < 1
    itself = agreement(one, Table(table(3)), [TEXT])
    assert (itself.top1, itself.mean_kl, itself.max_kl) == (1, 0, 0)


def test_what_makes_no_sense_is_refused() -> None:
    model = Table(table(5))
    for length in (0, WINDOW + 1):
        with pytest.raises(RequestError, match=f"{length} tokens .* 1 to {WINDOW} "):
            nll(model, [1] * length)
    with pytest.raises(RequestError, match="1 to 8 "):
        nll(Table(table(5), num_pages=2), [1] * 9)
    with pytest.raises(RequestError, match="nothing to score"):
        likelihood(model, [[1]])
    with pytest.raises(RequestError, match="nothing to compare"):
        agreement(model, model, [])
    with pytest.raises(RequestError, match="a chunk of 0 tokens"):
        next(logits(model, TEXT, 0))
    with pytest.raises(ShapeMismatch, match="share a vocabulary"):
        agreement(model, Table(np.zeros((9, 9), np.float32)), [TEXT])
