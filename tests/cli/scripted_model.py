"""A scripted model for the command line: the null device's protocol, an answer known beforehand."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from null_model import EOS, ByteTokenizer, LineTemplate, manifest

from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions, SamplingOptions
from sterna.runtime.null import NullExecutable

ANSWER = "ok, fine!"


class Script(NullExecutable):
    """Says `answer` after the last "assistant:" in the cache, else the last ":", then ends.

    Without an answer it repeats the last question. It takes `pause` seconds for each step.
    """

    def __init__(self, answer: bytes | None, window: int, pause: float = 0.0) -> None:
        super().__init__(manifest(context_window_size=window), 2 * window)
        self._answer = answer
        self._pause = pause
        self._text = np.zeros((2 * window, self.manifest.kv_cache.page_size), np.uint8)

    def step(self, batch: Any) -> Any:
        logits = super().step(batch)
        time.sleep(self._pause)
        logits[:] = -100
        for s, own in enumerate(map(slice, batch.seq_indptr, batch.seq_indptr[1:])):
            pages = batch.page_table[batch.page_indptr[s] : batch.page_indptr[s + 1]]
            text = self._text[pages].reshape(-1)
            text[batch.positions[own]] = batch.tokens[own]
            self._text[pages] = text.reshape(len(pages), -1)
            for i, row in enumerate(batch.logit_rows):
                if own.start <= row < own.stop:
                    logits[i, self._next(text[: batch.positions[row] + 1].tobytes())] = 100
        return logits

    def copy_page(self, source: int, destination: int) -> None:
        super().copy_page(source, destination)
        self._text[destination] = self._text[source]

    def _next(self, text: bytes) -> int:
        before, mark, said = text.rpartition(b"assistant:")
        if not mark:
            before, _, said = text.rpartition(b":")
        answer = self._answer
        if answer is None:
            answer = before.rpartition(b"user: ")[2].removesuffix(b"\n")
        return answer[len(said)] if len(said) < len(answer) else EOS


class ThinkingTemplate(LineTemplate):
    """Takes thoughts out of earlier answers, as the templates of reasoning models do."""

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        said = [{**m, "content": m["content"].rpartition("</think>")[2]} for m in messages]
        return super().render(said, **variables)


def scripted(
    answer: str | None = ANSWER,
    window: int = 256,
    template: bool = True,
    pause: float = 0.0,
    face: Any = Engine,
) -> Any:
    """An engine of this kind, Engine or AsyncEngine; it reasons if its answer has a thought."""
    lines = ThinkingTemplate() if "<think>" in (answer or "") else LineTemplate()
    return face.from_parts(
        Script(None if answer is None else answer.encode(), window, pause),
        ByteTokenizer(),
        lines if template else None,
        "scripted",
        SamplingOptions(),
        options=EngineOptions(mode="server"),
    )
