"""What the command line stands on in tests: a scripted model, its own cache and stdin."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_model import scripted

from sterna.cli import chat, generate


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let `chat` and `generate` talk to a scripted model; call it to say which."""

    def use(**settings: Any) -> None:
        for verb in (chat, generate):
            monkeypatch.setattr(verb, "open_engine", lambda args, names: scripted(**settings))

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

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))

    return put
