"""Ollama's and LM Studio's models are found where those programs keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sterna.base.errors import CheckpointError, Error, UnsupportedModel, UsageError
from sterna.checkpoint.hub import resolve, title
from sterna.checkpoint.local_stores import local_models

DIGEST = "sha256:" + "ab" * 32
MODEL = {"mediaType": "application/vnd.ollama.image.model", "digest": DIGEST, "size": 4}


@pytest.fixture
def ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "ollama"
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    monkeypatch.setenv("LMSTUDIO_MODELS", str(tmp_path / "lm"))
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / DIGEST.replace(":", "-")).write_bytes(b"GGUF")
    return root


def write(root: Path, name: str, layers: list[Any]) -> None:
    path = root / "manifests" / ("" if name.count("/") > 2 else "registry.ollama.ai") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def test_ollama(ollama: Path) -> None:
    write(ollama, "library/llama3.2/1b", [MODEL, {"mediaType": "text", "digest": "x"}])
    write(ollama, "someone/tuned/latest", [MODEL])
    write(ollama, "hf.co/user/M-GGUF/Q8_0", [MODEL])
    blob = ollama / "blobs" / DIGEST.replace(":", "-")
    assert resolve("ollama:llama3.2:1b") == blob
    assert resolve("ollama:someone/tuned") == blob
    assert resolve("ollama:hf.co/user/M-GGUF:Q8_0") == blob
    assert title("ollama:llama3.2:1b") == "llama3.2:1b"
    assert [(m.name, m.bytes) for m in local_models()] == [
        ("ollama:hf.co/user/M-GGUF:Q8_0", 4), ("ollama:llama3.2:1b", 4),
        ("ollama:someone/tuned:latest", 4),
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"write ollama:llama3\.2:1b for Ollama's model"):
        resolve("llama3.2:1b")
    with pytest.raises(UsageError, match=r"it has: .*ollama:llama3\.2:1b"):
        resolve("ollama:llama3.2")


def test_lm_studio(ollama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lm" / "publisher" / "M-GGUF"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"GGUF!")
    assert resolve("lmstudio:publisher/M-GGUF") == folder
    assert resolve("lmstudio:publisher/M-GGUF/m.gguf") == folder / "m.gguf"
    assert [(m.name, m.bytes) for m in local_models()] == [("lmstudio:publisher/M-GGUF", 5)]
    with pytest.raises(UsageError, match="it has: lmstudio:publisher/M-GGUF"):
        resolve("lmstudio:publisher/other")


@pytest.mark.parametrize(
    "name",
    ["ollama:", "ollama:../x", "ollama:a/b/c", "ollama:a:../../x", "lmstudio:a",
     "lmstudio:a/..", "lmstudio:/a/b", "lmstudio:a/b/c/d"],
)  # fmt: skip
def test_names_that_leave_the_store(ollama: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        resolve(name)


DAMAGED: dict[str, tuple[list[Any], type[Error], str]] = {
    "no model": ([{"mediaType": "text"}], CheckpointError, "names no model"),
    "no digest": ([{**MODEL, "digest": "sha256:../../x"}], CheckpointError, "no digest"),
    "gone": ([{**MODEL, "digest": "sha256:" + "0" * 64}], CheckpointError, "is gone"),
    "adapter": (
        [MODEL, {"mediaType": "application/vnd.ollama.image.adapter"}],
        UnsupportedModel,
        "adapter",
    ),
    "two models": ([MODEL, MODEL], UnsupportedModel, "in 2 files"),
    "layers": ([3], CheckpointError, "JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("title", DAMAGED)
def test_damaged_manifests(ollama: Path, title: str) -> None:
    layers, kind, words = DAMAGED[title]
    write(ollama, "library/m/latest", layers)
    with pytest.raises(kind, match=words):
        resolve("ollama:m")
    assert local_models() == []
