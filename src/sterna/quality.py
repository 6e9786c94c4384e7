"""How good a loaded model is: likelihood of given texts, and agreement with another model.

In: Executables and token sequences. Out: negative log-likelihoods in nats, perplexity, and how a
quantized model's next-token distributions differ from its source's. Sums are float64. It does not
know texts, tokenizers, quantization or devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
from numpy.typing import NDArray

from sterna.base.errors import RequestError, ShapeMismatch
from sterna.runtime.executable import Executable, StepInput

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Over all scored tokens: each document's second and later."""

    documents: int
    tokens: int
    sum_nll: float  # nats

    @property
    def mean_nll(self) -> float:
        return self.sum_nll / self.tokens

    @property
    def perplexity(self) -> float:
        return exp(self.mean_nll)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How next-token distributions differ from a reference's, over all positions of all prompts.

    `top1` is the share of positions whose most likely token is the same, `mean_kl` and `max_kl`
    are of KL(reference || model), in nats.
    """

    positions: int
    top1: float
    mean_kl: float
    max_kl: float


def logits(
    executable: Executable, tokens: Sequence[int], chunk: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield the logits at every position, float32 [at most chunk, vocab_size], block by block.

    The sequence is computed in chunks of as many tokens as one step gives logits for, at most
    `chunk`. Each block is overwritten when the next is asked for. RequestError for no tokens, or
    more than the context or the cache holds.
    """
    most = most_rows(executable)
    size = most if chunk is None else min(chunk, most)
    if size < 1:
        raise RequestError(f"a chunk of {size} tokens was asked for; possible: 1 to {most}")
    pages = _pages(executable, len(tokens))
    page_size = executable.manifest.kv_cache.page_size
    for start in range(0, len(tokens), size):
        end = min(start + size, len(tokens))
        table = pages[: -(-end // page_size)]
        yield executable.step(
            StepInput(
                tokens=np.asarray(tokens[start:end], dtype=np.int32),
                positions=np.arange(start, end, dtype=np.int32),
                seq_indptr=np.array([0, end - start], dtype=np.int32),
                page_indptr=np.array([0, len(table)], dtype=np.int32),
                page_table=table,
                logit_rows=np.arange(end - start, dtype=np.int32),
            )
        )


def most_rows(executable: Executable) -> int:
    """The most tokens whose logits one step of one sequence gives."""
    bounds = [{d.name: d.hi for d in entry.dims} for entry in executable.manifest.entries]
    return max(min(hi.get("n", 1), hi.get("r", 1)) for hi in bounds)


def nll(executable: Executable, tokens: Sequence[int]) -> Floats:
    """The negative log-likelihood of each token after the first: float64 [len(tokens) - 1]."""
    found, start = [], 0
    for block in logits(executable, tokens):
        scored = tokens[start + 1 : start + 1 + len(block)]
        log_shares = log_softmax(block[: len(scored)])
        found.append(-log_shares[np.arange(len(scored)), scored])
        start += len(block)
    return np.concatenate(found)


def likelihood(executable: Executable, documents: Iterable[Sequence[int]]) -> Likelihood:
    """Score documents, each on its own from its first token on; one of a token scores nothing.

    RequestError when nothing at all is scored.
    """
    scores = [nll(executable, document) for document in documents]
    tokens = sum(len(score) for score in scores)
    if tokens == 0:
        raise RequestError("there is nothing to score: give a document of two tokens or more")
    return Likelihood(len(scores), tokens, float(sum(score.sum() for score in scores)))


def agreement(
    reference: Executable, model: Executable, prompts: Iterable[Sequence[int]]
) -> Agreement:
    """Compare two models position by position; ShapeMismatch for different vocabularies."""
    ours, theirs = (e.manifest.model.vocab_size for e in (model, reference))
    if ours != theirs:
        raise ShapeMismatch(
            f"a model of {ours} tokens cannot be compared with one of {theirs}: "
            "both must share a vocabulary"
        )
    same: list[NDArray[np.bool_]] = []
    divergence: list[Floats] = []
    size = min(most_rows(reference), most_rows(model))
    for prompt in prompts:
        blocks = zip(logits(reference, prompt, size), logits(model, prompt, size), strict=True)
        for wanted, found in blocks:
            p, q = log_softmax(wanted), log_softmax(found)
            divergence.append((np.exp(p) * (p - q)).sum(axis=-1))
            same.append(wanted.argmax(axis=-1) == found.argmax(axis=-1))
    if not same:
        raise RequestError("there is nothing to compare: give a prompt")
    kl = np.concatenate(divergence)
    return Agreement(len(kl), float(np.concatenate(same).mean()), float(kl.mean()), float(kl.max()))


def log_softmax(values: NDArray[np.float32]) -> Floats:
    """Log-probabilities along the last axis, in float64."""
    shifted = values.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _pages(executable: Executable, length: int) -> NDArray[np.int32]:
    manifest = executable.manifest
    window = manifest.model.context_window_size
    room = min(window, executable.num_pages * manifest.kv_cache.page_size)
    if not 1 <= length <= room:
        raise RequestError(
            f"a sequence of {length} tokens cannot be scored; there is room for 1 to {room} "
            f"(a context window of {window} tokens, {executable.num_pages} cache pages)"
        )
    return np.arange(-(-length // manifest.kv_cache.page_size), dtype=np.int32)
