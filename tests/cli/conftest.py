"""A scripted model for the command line: the null device's protocol, an answer known beforehand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from null_model import EOS, VOCAB, ByteTokenizer, LineTemplate, manifest

from sterna.cli import chat, generate
from sterna.engine.engine import Engine
from sterna.engine.options import EngineOptions, SamplingOptions
from sterna.runtime.null import NullExecutable

ANSWER = "ok, fine!"  # no character twice: each names the one that follows


class Chain(NullExecutable):
    """Says `answer` after a ":", then ends; `delay` is called before each step."""

    def __init__(self, answer: bytes, window: int, delay: Any = None) -> None:
        super().__init__(manifest(context_window_size=window), 512)
        assert len(set(answer)) == len(answer), "each byte must name the one that follows"
        assert ord(":") not in answer, "the answer begins after it"
        self._after = dict(zip([ord(":"), *answer], [*answer, EOS]))
        self._delay = delay

    def step(self, batch: Any) -> Any:
        if self._delay is not None:
            self._delay()
        super().step(batch)
        logits = np.full((len(batch.logit_rows), VOCAB), -100, np.float32)
        for i, row in enumerate(batch.logit_rows):
            logits[i, self._after.get(int(batch.tokens[row]), ord("z"))] = 100
        return logits


def scripted(
    answer: str = ANSWER, window: int = 256, template: bool = True, delay: Any = None
) -> Engine:
    return Engine.from_parts(
        Chain(answer.encode(), window, delay),
        ByteTokenizer(),  # type: ignore[arg-type]
        LineTemplate() if template else None,
        "scripted",
        SamplingOptions(),
        options=EngineOptions(mode="server"),  # type: ignore[arg-type]
    )


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `chat` and `generate` talk to a scripted model; call it to say which."""

    def use(**settings: Any) -> None:
        for verb in (chat, generate):
            monkeypatch.setattr(verb, "open_engine", lambda args: scripted(**settings))

    use()
    return use


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the user's cache."""
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STERNA_DEBUG", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put bytes on stdin, as a pipe does."""
    import io

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))

    return put
