"""`sterna list` and `sterna rm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna.base.cache import cache_dir
from sterna.checkpoint.local_stores import LocalModel
from sterna.cli import hub_cache, list_models, rm
from sterna.cli.main import main


@pytest.fixture(autouse=True)
def _stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("LMSTUDIO_MODELS", str(tmp_path / "lm"))
    folder = tmp_path / "lm" / "publisher" / "M"
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"x" * 2048)
    (cache_dir("models") / "M-q4f16_1-0123").mkdir()
    (cache_dir("models") / "M-q4f16_1-0123" / "shard").write_bytes(b"x" * 1024)
    for module in (list_models, rm):
        monkeypatch.setattr(module, "hub_models", lambda: {"HF://a/b": 4096})


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["downloaded", "4.0", "KiB", "HF://a/b"],
        ["converted", "1.0", "KiB", "M-q4f16_1-0123"],
        ["lmstudio", "2.0", "KiB", "lmstudio:publisher/M"],
        ["7.0", "KiB", "in", "3", "models"],
    ]


def test_a_file_of_two_names_counts_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    twice = [LocalModel(name, tmp_path / "blob", 2048) for name in ("ollama:a:1", "ollama:b:1")]
    monkeypatch.setattr(list_models, "local_models", lambda: twice)
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "7.0 KiB in 4 models"


def test_rm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["rm", "M-q4f16_1-0123"]) == 0
    assert "1.0 KiB freed" in capsys.readouterr().out
    assert not (cache_dir("models") / "M-q4f16_1-0123").exists()
    (cache_dir("models") / "linked").symlink_to(tmp_path / "lm")
    assert main(["rm", "linked"]) == 0
    assert (tmp_path / "lm" / "publisher" / "M" / "m.gguf").exists()
    assert not (cache_dir("models") / "linked").is_symlink()
    capsys.readouterr()
    monkeypatch.setattr(rm, "remove_hub_model", lambda name: {"HF://a/b": 7}[name])
    assert main(["rm", "hf://a/b"]) == 0
    assert "7 B freed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("M-q4f16_1", "did you mean M-q4f16_1-0123?"),
        ("HF://a/c", "is not on this machine"),
        ("ollama:x", "belongs to Ollama"),
        ("lmstudio:publisher/M", "belongs to LM Studio"),
        ("../x", "no converted model"),
    ],
)
def test_rm_what_is_not_there(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", name]) == 2
    assert words in capsys.readouterr().err


def test_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository as huggingface_hub lays it out is listed, and removed."""
    import huggingface_hub

    root = tmp_path / "hub"
    repo = root / "models--a--b"
    commit = "0" * 40
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "x").write_bytes(b"x" * 100)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").symlink_to(repo / "blobs" / "x")
    real = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: real(root))
    assert hub_cache.hub_models() == {"HF://a/b": 100}
    (repo / "blobs" / "y.part").write_bytes(b"y" * 10)
    (repo / "blobs" / "z.1.incomplete").write_bytes(b"z")
    assert hub_cache.hub_models() == {"HF://a/b": 111}
    assert hub_cache.remove_hub_model("HF://a/b") == 111
    assert not repo.exists()
