"""Weights in a mapped file: the same numbers, whatever became of the file in between."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import compiled
import msgspec
import pytest
import tiny

from sterna.base.errors import MissingTensor, TokenizerError
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.engine.engine import Engine
from sterna.engine.loader import Located
from sterna.engine.options import EngineOptions
from sterna.runtime import cpu, packed
from sterna.runtime.library import read_manifest
from sterna.runtime.params import WeightReader

CONFIG = tiny.VARIANTS["llama1"]
PROMPT = [1, 5, 9, 13, 2, 7]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> compiled.Compiled:
    return compiled.build_tiny(tmp_path_factory.mktemp("packed"), CONFIG, "q4f16_1")


@pytest.fixture(autouse=True)
def small_models_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 0)


class Unread:
    """A tensor that must not be read."""

    def read(self) -> Any:
        raise AssertionError("the weights were packed again")


def tensors(made: compiled.Compiled) -> Mapping[str, WeightReader]:
    return read_mlc_folder(made.folder).tensors


def logits(
    made: compiled.Compiled, path: Path | None, weights: Mapping[str, WeightReader] | None = None
) -> bytes:
    weights = tensors(made) if weights is None else weights
    model = cpu.load(made.library, weights, num_pages=4, threads=1, packed=path)
    found = compiled.all_logits(model, PROMPT, [len(PROMPT)], range(4))
    model.close()
    finish()
    return found.tobytes()


def finish() -> None:
    """Until the file is on the disk."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join(20)


def test_a_second_load_maps_what_the_first_one_packed(
    made: compiled.Compiled, tmp_path: Path
) -> None:
    path = tmp_path / "w.bin"
    wanted = logits(made, None)
    assert not list(tmp_path.iterdir())
    assert logits(made, path) == wanted
    assert list(tmp_path.iterdir()) == [path]
    unread = dict.fromkeys(tensors(made), Unread())
    assert logits(made, path, unread) == wanted
    with pytest.raises(AssertionError, match="packed again"):
        logits(made, tmp_path / "other.bin", unread)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:100],
        lambda data: b"\0" * len(data),
        lambda data: data.replace(b"packed weights", b"packed somehow", 1),
        lambda data: data[:24] + bytes(64) + data[88:],  # another layout
    ],
)
def test_a_file_that_is_not_whole_is_made_again(
    made: compiled.Compiled, tmp_path: Path, damage: Any
) -> None:
    path = tmp_path / "w.bin"
    wanted = logits(made, path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert logits(made, path) == wanted
    assert path.read_bytes() == whole


def test_a_file_with_words_in_other_streams_is_made_again(
    made: compiled.Compiled, tmp_path: Path
) -> None:
    """It is as long as the right one, and has the same words elsewhere."""
    path, manifest = tmp_path / "w.bin", read_manifest(made.library)
    replace = msgspec.structs.replace
    params = tuple(
        replace(p, streams=2 if p.streams == 1 else 1) if p.dtype == "u32" else p
        for p in manifest.params
    )
    assert packed.packed_params(replace(manifest, params=params), tensors(made), path)
    finish()
    other = path.read_bytes()
    assert logits(made, path) == logits(made, None)
    assert len(path.read_bytes()) == len(other)
    assert path.read_bytes() != other


def test_pieces_of_any_size_make_the_same_file(
    made: compiled.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = logits(made, tmp_path / "whole.bin")
    monkeypatch.setattr(packed, "_PIECE", 1000)
    assert logits(made, tmp_path / "pieces.bin") == wanted
    assert (tmp_path / "pieces.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_two_loads_at_once(made: compiled.Compiled, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    first = cpu.load(made.library, tensors(made), num_pages=4, threads=1, packed=path)
    second = cpu.load(made.library, tensors(made), num_pages=4, threads=1, packed=path)
    found = [
        compiled.all_logits(model, PROMPT, [len(PROMPT)], range(4)).tobytes()
        for model in (first, second)
    ]
    assert found[0] == found[1] == logits(made, None)
    first.close()
    second.close()
    finish()
    assert list(tmp_path.iterdir()) == [path]


def test_where_no_file_can_be_kept_weights_are_packed_in_memory(
    made: compiled.Compiled,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = logits(made, None)
    assert logits(made, tmp_path / "gone" / "w.bin") == wanted
    assert "No such file" in caplog.text

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert logits(made, tmp_path / "w.bin") == wanted
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_the_librarys_leave_nothing(
    made: compiled.Compiled, tmp_path: Path
) -> None:
    fewer = dict(list(tensors(made).items())[1:])
    with pytest.raises(MissingTensor):
        logits(made, tmp_path / "w.bin", fewer)
    assert not list(tmp_path.iterdir())


def test_an_engine_keeps_them_in_the_cache(
    made: compiled.Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path))

    def files(**options: Any) -> set[str]:
        located = Located(made.folder, made.library, tensors(made))
        with Engine(resolve=lambda *_: located, options=EngineOptions(**options)) as engine:
            engine.completions.create(prompt=PROMPT, max_tokens=2)
        finish()
        folder = tmp_path / "weights"
        return {path.name for path in folder.glob("*.bin")} if folder.is_dir() else set()

    assert files(keep_packed=False) == set()
    first = files()
    assert len(first) == 1
    assert files() == first
    shard = next(iter(sorted(made.folder.glob("params_shard_*.bin"))))
    os.utime(shard)  # as if it were another file
    assert len(files()) == 2


def test_a_damaged_tokenizer_leaves_no_model_behind(
    made: compiled.Compiled, tmp_path: Path
) -> None:
    folder = shutil.copytree(made.folder, tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"model": ')
    located = Located(folder, made.library, read_mlc_folder(folder).tensors)
    options = EngineOptions(threads=2, keep_packed=False)
    before = threading.active_count()
    with pytest.raises(TokenizerError, match="download it again") as failed:
        Engine(resolve=lambda *_: located, options=options)
    # The frames that loaded it are still there, so nothing else but `load` itself closes it.
    assert failed.tb is not None
    assert threading.active_count() == before
