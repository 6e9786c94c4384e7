"""A hand-written library through load, step, threads and close; and libraries that must fail."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from toy_library import (
    PAGE_BYTES,
    VOCAB,
    Tensor,
    build_toy,
    toy_logits,
    toy_manifest,
    toy_step,
    toy_weights,
    with_entry,
)

from sterna.base.artifact import Buffer, Dim, Manifest
from sterna.base.errors import (
    ArtifactError,
    DeviceError,
    MissingTensor,
    OutOfMemory,
    RequestError,
    ShapeMismatch,
    Unavailable,
    UsageError,
)
from sterna.runtime.cpu import CpuExecutable, load
from sterna.runtime.executable import Executable
from sterna.runtime.memory import Region


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(params=[1, 2, 4])
def model(library: Path, request: pytest.FixtureRequest) -> Iterator[CpuExecutable]:
    executable = load(library, toy_weights(), num_pages=20, threads=request.param)
    yield executable
    executable.close()


def test_it_is_an_executable(library: Path) -> None:
    loaded: Executable = load(library, toy_weights(), num_pages=3)
    assert loaded.num_pages == 3
    assert loaded.manifest == toy_manifest()
    loaded.close()


def test_prefill_in_chunks_then_decode(model: CpuExecutable) -> None:
    prompt, pages = [5, 7, 11, 2, 3, 1, 8, 8, 20], [9, 2, 17]
    whole = model.step(toy_step([(prompt, 0, pages)])).copy()
    assert whole.shape == (9, VOCAB)
    for i in range(9):
        assert (whole[i] == toy_logits(prompt[: i + 1])).all()
    other = [3, 4, 5]
    model.step(toy_step([(prompt[:5], 0, other[:2])], rows=[]))
    last = model.step(toy_step([(prompt[5:], 5, other)], rows=[3]))
    assert (last[0] == whole[8]).all()
    assert (model.step(toy_step([([4], 9, pages)]))[0] == toy_logits([*prompt, 4])).all()


def test_a_ragged_batch(model: CpuExecutable) -> None:
    long = [i % VOCAB for i in range(25)]
    model.step(toy_step([([6, 6], 0, [12])]))
    found = model.step(
        toy_step([(long, 0, [0, 1, 2, 3, 4, 5, 6]), ([7], 2, [12]), ([9, 10], 0, [13])])
    )
    wanted = [long[: i + 1] for i in range(25)] + [[6, 6, 7], [9], [9, 10]]
    assert (found == [toy_logits(history) for history in wanted]).all()


def test_many_steps_with_pauses(model: CpuExecutable) -> None:
    """Workers fall asleep between some steps and are woken by others."""
    history: list[int] = []
    for i in range(60):
        token = i * 7 % VOCAB
        history.append(token)
        logits = model.step(toy_step([([token], i, list(range(i // 4 + 1)))]))
        assert (logits[0] == toy_logits(history)).all()
        if i % 20 == 0:
            time.sleep(0.03)


def test_copy_page(model: CpuExecutable) -> None:
    model.step(toy_step([([1, 2, 3, 4, 5], 0, [0, 1])]))
    model.copy_page(1, 7)
    forked = model.step(toy_step([([6], 5, [0, 7])]))[0].copy()
    assert (forked == toy_logits([1, 2, 3, 4, 5, 6])).all()
    assert (model.step(toy_step([([9], 5, [0, 1])]))[0] == toy_logits([1, 2, 3, 4, 5, 9])).all()
    with pytest.raises(RequestError, match="page 20"):
        model.copy_page(0, 20)


def test_a_page_read_and_written_elsewhere_is_a_copy(model: CpuExecutable) -> None:
    model.step(toy_step([([1, 2, 3, 4, 5], 0, [0, 1])]))
    saved = [model.read_page(page) for page in (0, 1)]
    model.step(toy_step([([9, 9, 9, 9, 9], 0, [0, 1])]))  # what was read is not the cache's memory
    for page, data in zip((4, 7), saved):
        model.write_page(page, data)
    found = model.step(toy_step([([6], 5, [4, 7])]))[0]
    assert (found == toy_logits([1, 2, 3, 4, 5, 6])).all()
    for page in (-1, 20):
        with pytest.raises(RequestError, match=f"page {page}"):
            model.read_page(page)
        with pytest.raises(RequestError, match=f"page {page}"):
            model.write_page(page, saved[0])


def test_closing(library: Path) -> None:
    before = threading.active_count()
    model = load(library, toy_weights(), num_pages=4, threads=4)
    assert threading.active_count() == before + 3
    logits = model.step(toy_step([([1], 0, [0])]))
    model.close()
    model.close()
    assert threading.active_count() == before
    assert (logits[0] == toy_logits([1])).all()
    with pytest.raises(DeviceError, match="closed"):
        model.step(toy_step([([1], 0, [0])]))
    with pytest.raises(DeviceError, match="closed"):
        model.copy_page(0, 1)


def test_closing_frees_the_memory(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    regions: list[weakref.ref[Any]] = []
    original = Region.take

    def take(self: Region, size: int) -> Any:
        piece = original(self, size)
        memory = piece
        while isinstance(memory, np.ndarray):
            memory = memory.base
        regions.append(weakref.ref(memory.obj if isinstance(memory, memoryview) else memory))
        return piece

    monkeypatch.setattr(Region, "take", take)
    model = load(library, toy_weights(), num_pages=4, threads=2)
    logits = model.step(toy_step([([1], 0, [0])]))
    assert all(region() is not None for region in regions)
    model.close()
    gc.collect()
    assert len({id(region()) for region in regions if region() is not None}) == 1  # the logits'
    assert (logits[0] == toy_logits([1])).all()


def test_a_forgotten_model_ends_its_threads(library: Path) -> None:
    before = threading.active_count()
    model = load(library, toy_weights(), num_pages=4, threads=3)
    model.step(toy_step([([1], 0, [0])]))
    del model
    gc.collect()
    assert threading.active_count() == before


def test_an_entry_that_fails(tmp_path: Path) -> None:
    model = load(build_toy(tmp_path, code=7), toy_weights(), num_pages=4, threads=2)
    with pytest.raises(DeviceError, match="code 7"):
        model.step(toy_step([([1], 0, [0])]))
    model.close()


def test_a_step_no_entry_takes(library: Path) -> None:
    model = load(library, toy_weights(), num_pages=20, threads=1)
    with pytest.raises(RequestError, match=r"prefill with n 1\.\.40"):
        model.step(toy_step([([1] * 41, 0, list(range(11)))]))
    model.close()


def test_weights_that_do_not_fit(library: Path) -> None:
    good = toy_weights()
    with pytest.raises(MissingTensor, match="'w'"):
        load(library, {"bias": good["bias"]}, num_pages=1)
    with pytest.raises(ShapeMismatch, match=r"\[21, 2\].*\[21, 3\]"):
        load(library, {**good, "w": Tensor(good["w"].array[:, :2])}, num_pages=1)
    with pytest.raises(ShapeMismatch, match="float64"):
        load(library, {**good, "w": Tensor(good["w"].array.astype(np.float64))}, num_pages=1)


def test_too_much_memory_is_named_before_it_is_taken(library: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"KV cache \d+\.\d+ GiB"):
        load(library, {}, num_pages=2**50 // PAGE_BYTES)


@pytest.mark.parametrize(("pages", "threads"), [(0, 1), (-1, 1), (1, 0), (1, 100_000)])
def test_numbers_that_make_no_sense(library: Path, pages: int, threads: int) -> None:
    with pytest.raises(UsageError):
        load(library, toy_weights(), num_pages=pages, threads=threads)


def _manifests() -> dict[str, tuple[Manifest, str]]:
    good = toy_manifest()
    prefill = good.entries[0]
    inputs = (*prefill.inputs, Buffer("temperature", "f32", ("b",)))
    outputs = (Buffer("logits", "f16", ("r", "21")),)
    lying = (Buffer("logits", "f32", ("r", "0 - 21")),)
    replace = msgspec.structs.replace
    laid = {
        f"{streams} streams": (
            replace(good, params=(replace(good.params[0], streams=streams), *good.params[1:])),
            f"tiles of 8 rows in {streams} streams",
        )
        for streams in (0, -1, -8, 3, 16)
    }
    return laid | {
        "input": (with_entry(good, 0, inputs=inputs), "temperature"),
        "output": (with_entry(good, 0, outputs=outputs), "f16"),
        "dim": (with_entry(good, 0, dims=(*prefill.dims, Dim("zz", 1, 2))), "zz"),
        "symbol": (with_entry(good, 0, symbol="sterna_entry_none"), "sterna_entry_none"),
        "arena": (with_entry(good, 0, arena_bytes=-8), "negative"),
        "shape": (with_entry(good, 0, outputs=lying), "negative"),
        "page": (replace(good, kv_cache=replace(good.kv_cache, page_bytes=0)), "negative"),
    }


@pytest.mark.parametrize("name", sorted(_manifests()))
def test_a_manifest_that_was_tampered_with(name: str, tmp_path: Path) -> None:
    manifest, word = _manifests()[name]
    with pytest.raises(ArtifactError, match=word):
        load(build_toy(tmp_path, manifest), toy_weights(), num_pages=2)


def test_features_this_machine_lacks(tmp_path: Path) -> None:
    library = build_toy(tmp_path, toy_manifest(features=("avx9000",)))
    with pytest.raises(Unavailable, match="lacks avx9000"):
        load(library, toy_weights(), num_pages=2)


def test_another_version_of_the_interface(tmp_path: Path) -> None:
    library = build_toy(tmp_path, edit=("#define STERNA_ABI 1", "#define STERNA_ABI 99"))
    with pytest.raises(ArtifactError, match="version 99"):
        load(library, toy_weights(), num_pages=2)


def test_a_library_replaced_under_a_running_model(tmp_path: Path) -> None:
    model = load(build_toy(tmp_path), toy_weights(), num_pages=2, threads=2)
    library = build_toy(tmp_path, toy_manifest(sterna="newer"))
    with contextlib.suppress(ArtifactError):  # or a sentence, where the system gives the old one
        newer = load(library, toy_weights(), num_pages=2, threads=1)
        assert newer.manifest.sterna == "newer"
        newer.close()
    assert (model.step(toy_step([([1], 0, [0])]))[0] == toy_logits([1])).all()
    model.close()
    again = load(library, toy_weights(), num_pages=2, threads=1)
    assert again.manifest.sterna == "newer"
    again.close()


def test_a_failed_load_does_not_hold_the_library(tmp_path: Path) -> None:
    with pytest.raises(MissingTensor):
        load(build_toy(tmp_path), {}, num_pages=2)
    library = build_toy(tmp_path, toy_manifest(sterna="newer"))
    model = load(library, toy_weights(), num_pages=2, threads=1)
    assert model.manifest.sterna == "newer"
    model.close()
