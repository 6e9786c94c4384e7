"""A scripted model for the command line: the null device's protocol, an answer known beforehand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from null_model import EOS, VOCAB, ByteTokenizer, LineTemplate, manifest

from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions, SamplingOptions
from sterna.runtime.null import NullExecutable

ANSWER = "ok, fine!"  # no character twice: each names the one that follows


class Chain(NullExecutable):
    """Says `answer` after a ":", then ends."""

    def __init__(self, answer: bytes, window: int) -> None:
        super().__init__(manifest(context_window_size=window), 512)
        assert len(set(answer)) == len(answer), "each byte must name the one that follows"
        assert ord(":") not in answer, "the answer begins after it"
        self._after = dict(zip([ord(":"), *answer], [*answer, EOS]))

    def step(self, batch: Any) -> Any:
        super().step(batch)
        logits = np.full((len(batch.logit_rows), VOCAB), -100, np.float32)
        for i, row in enumerate(batch.logit_rows):
            logits[i, self._after.get(int(batch.tokens[row]), ord("z"))] = 100
        return logits


def scripted(answer: str = ANSWER, window: int = 256, template: bool = True) -> Engine:
    return Engine.from_parts(
        Chain(answer.encode(), window),
        ByteTokenizer(),  # type: ignore[arg-type]
        LineTemplate() if template else None,
        "scripted",
        SamplingOptions(),
        options=EngineOptions(mode="server"),  # type: ignore[arg-type]
    )
