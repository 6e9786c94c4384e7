"""Samples to the log probability shapes of chat and text completions."""

from __future__ import annotations

from collections.abc import Sequence

from sterna.engine import api
from sterna.engine.sampler import Sample
from sterna.text.tokenizer import Tokenizer


def chat_logprobs(tokenizer: Tokenizer, samples: Sequence[Sample]) -> api.ChoiceLogprobs:
    return api.ChoiceLogprobs(content=[_token(tokenizer, sample) for sample in samples])


def completion_logprobs(tokenizer: Tokenizer, samples: Sequence[Sample]) -> api.CompletionLogprobs:
    tokens = [_text(tokenizer, sample.token) for sample in samples]
    offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
    tops = [{_text(tokenizer, i): value for i, value in sample.top} for sample in samples]
    return api.CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[_logprob(sample) for sample in samples],
        top_logprobs=tops if any(tops) else None,
        text_offset=offsets,
    )


def _token(tokenizer: Tokenizer, sample: Sample) -> api.TokenLogprob:
    return api.TokenLogprob(
        token=_text(tokenizer, sample.token),
        logprob=_logprob(sample),
        bytes=list(tokenizer.id_to_piece(sample.token)),
        top_logprobs=[
            api.TopLogprob(
                token=_text(tokenizer, i), logprob=value, bytes=list(tokenizer.id_to_piece(i))
            )
            for i, value in sample.top
        ],
    )


def _logprob(sample: Sample) -> float:
    assert sample.logprob is not None, "log probabilities were not asked for"
    return sample.logprob


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    """The token by itself; where it is part of a character, U+FFFD: `bytes` has the truth."""
    return tokenizer.id_to_piece(token_id).decode("utf-8", "replace")
