"""A KV cache in 8 bits: near the one in floats, a fraction of its size, and as deterministic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import pytest
from compiled import Compiled, Logits, Part, Tiny, all_logits, cut, step_input, tiny

from sterna.base.artifact import CompileOptions, KVDtype
from sterna.base.errors import ArtifactError, RequestError, UsageError
from sterna.base.target import host_target
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.compiler import compile_model
from sterna.engine.loader import Located, load
from sterna.engine.options import EngineOptions
from sterna.engine.parts import Parts
from sterna.runtime.cpu import CpuExecutable
from sterna.runtime.memory import memory_plan

CONFIG = {
    **tiny.VARIANTS["llama2-gqa"],
    "max_position_embeddings": 512,
    "num_hidden_layers": 2,
    "vocab_size": 157,
}
LENGTH, PAGES = 150, 12  # past a piece of attention
PROMPT = np.random.default_rng(5).integers(3, 157, LENGTH).tolist()


@pytest.fixture(scope="module")
def floats(tiny_model: Tiny) -> Compiled:
    return tiny_model(CONFIG, "q0f32", context_window_size=192, prefill_chunk_size=192)


@pytest.fixture(scope="module")
def eighth(floats: Compiled) -> Compiled:
    library = floats.folder / f"q8{host_target().suffix}"
    options = CompileOptions(context_window_size=192, prefill_chunk_size=192, kv_dtype="q8")
    compile_model(floats.folder, host_target(), library, options=options)
    return Compiled(floats.folder, library)


@pytest.fixture(scope="module")
def model(eighth: Compiled) -> Iterator[CpuExecutable]:
    loaded = eighth.load(num_pages=PAGES)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def whole(model: CpuExecutable) -> Logits:
    return all_logits(model, PROMPT, [LENGTH], range(PAGES))


def test_it_says_what_it_keeps_and_is_smaller(floats: Compiled, model: CpuExecutable) -> None:
    other = floats.load(num_pages=PAGES)
    own, wide = model.manifest.kv_cache, other.manifest.kv_cache
    assert (own.dtype, wide.dtype) == ("q8", "f32")
    slot = own.head_dim + 2  # a byte a number, and the scale
    assert own.page_bytes == 2 * own.layers * own.kv_heads * own.page_size * slot
    assert wide.page_bytes == 2 * own.layers * own.kv_heads * own.page_size * own.head_dim * 4
    plans = [memory_plan(m.manifest, 100, 1).kv_cache for m in (model, other)]
    assert plans[0] / plans[1] == pytest.approx(own.page_bytes / wide.page_bytes, rel=0.01)
    other.close()


def test_logits_are_near_those_of_floats(floats: Compiled, whole: Logits) -> None:
    other = floats.load(num_pages=PAGES)
    exact = all_logits(other, PROMPT, [LENGTH], range(PAGES))
    other.close()
    error = np.abs(whole - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.02


@pytest.mark.parametrize("chunk", [1, 7, 33, 128])
def test_chunks_do_not_matter(model: CpuExecutable, whole: Logits, chunk: int) -> None:
    pages = np.random.default_rng(chunk).permutation(PAGES).tolist()
    found = all_logits(model, PROMPT, cut(LENGTH, chunk), pages)
    assert found.tobytes() == whole.tobytes()


def test_threads_do_not_matter(eighth: Compiled, whole: Logits) -> None:
    loaded = eighth.load(threads=3, num_pages=PAGES)
    assert all_logits(loaded, PROMPT, cut(LENGTH, 40), range(PAGES)).tobytes() == whole.tobytes()
    loaded.close()


def test_a_copied_page_takes_its_scales_along(model: CpuExecutable, whole: Logits) -> None:
    all_logits(model, PROMPT[:-1], [LENGTH - 1], range(PAGES))
    last = (LENGTH - 1) // 16
    model.copy_page(last, PAGES - 1)
    forked = Part(PROMPT[-1:], LENGTH - 1, [*range(last), PAGES - 1])
    assert model.step(step_input([forked], 16))[0].tobytes() == whole[-1].tobytes()


def test_a_dtype_that_is_none_is_refused(floats: Compiled) -> None:
    options = CompileOptions(kv_dtype=cast(KVDtype, "q4"))
    with pytest.raises(UsageError, match="'q4', possible are f16, q8"):
        compile_model(floats.folder, host_target(), floats.folder / "no.so", options=options)


def test_an_engine_asks_for_what_the_library_keeps(floats: Compiled, eighth: Compiled) -> None:
    def parts(compiled: Compiled, kv_dtype: str) -> Parts:
        tensors = read_mlc_folder(compiled.folder).tensors
        located = Located(compiled.folder, compiled.library, tensors)
        return load(located, EngineOptions(kv_dtype=kv_dtype, max_total_tokens=64))

    with pytest.raises(ArtifactError, match=r"kv_dtype q8 was asked for.*in f32; compile"):
        parts(floats, "q8")
    for kv_dtype in ("auto", "q8"):
        found = parts(eighth, kv_dtype)
        assert found.executable.manifest.kv_cache.dtype == "q8"
        found.executable.close()
    with pytest.raises(RequestError, match="kv_dtype is 'q4', possible are auto, f16, q8"):
        EngineOptions(kv_dtype="q4")
