"""Whole models whose products are of pairs of bf16: the same bits however a step is cut or shared.

The instruction's C model runs here, on a target that is this machine's but for that.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiled import (
    Compiled,
    Logits,
    Part,
    all_logits,
    build_tiny,
    convert,
    cut,
    drawn_source,
    step_input,
    tiny,
)

from sterna.base.artifact import CompileOptions
from sterna.base.errors import UsageError
from sterna.base.target import host_target, parse_target
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.compiler import compile_model
from sterna.runtime import cpu
from sterna.runtime.cpu import CpuExecutable

CONFIG = {
    **tiny.VARIANTS["llama2-gqa"],
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "vocab_size": 157,
}
SIZES = {"context_window_size": 128, "prefill_chunk_size": 64}
LENGTH, PAGES = 50, 32
PROMPT = np.random.default_rng(5).integers(3, 157, LENGTH).tolist()


@pytest.fixture(scope="module", params=["q4f16_1", "q0bf16"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("bf16")
    source = drawn_source(root, CONFIG, tiny.weights(CONFIG))
    folder = convert(source, root / "model", request.param)
    library = folder / f"bf16{host_target().suffix}"
    target = replace(host_target(), bf16_pairs=True)
    options = CompileOptions(**SIZES, activations="bf16")
    told: list[str] = []
    compile_model(folder, target, library, options=options, cached=False, progress=told.append)
    assert not any("keep activations" in line for line in told)
    return Compiled(folder, library)


def test_a_model_has_the_same_bits_however_it_runs(compiled: Compiled) -> None:
    whole: Logits | None = None
    for threads in (1, 2):
        model = compiled.load(threads=threads, num_pages=PAGES)
        for chunk in (LENGTH, 32, 3, 1):
            found = all_logits(model, PROMPT, cut(LENGTH, chunk), range(PAGES))
            whole = found if whole is None else whole
            assert found.tobytes() == whole.tobytes(), f"steps of {chunk} tokens"
        others = [
            Part(PROMPT[:n], 0, range(4 + 2 * i, 6 + 2 * i)) for i, n in enumerate((3, 9, 17))
        ]
        parts = [Part(PROMPT[-1:], LENGTH - 1, range(4)), *others]
        rows = model.step(step_input(parts, model.manifest.kv_cache.page_size))
        assert rows[0].tobytes() == whole[-1].tobytes()
        model.close()


def test_its_logits_are_near_those_of_f32(compiled: Compiled) -> None:
    library = compiled.library.with_stem("f32")
    options = CompileOptions(**SIZES, activations="f32")
    compile_model(compiled.folder, host_target(), library, options=options, cached=False)
    ours, theirs = (
        all_logits(load(compiled, path), PROMPT, [LENGTH], range(PAGES))
        for path in (compiled.library, library)
    )
    gap = np.abs(ours - theirs).max() / np.ptp(theirs)
    assert 1e-5 < gap < 2e-2  # bf16 has eight bits


def load(compiled: Compiled, library: Path) -> CpuExecutable:
    return cpu.load(library, read_mlc_folder(compiled.folder).tensors, num_pages=PAGES)


def test_a_scheme_without_such_products_is_told(tmp_path: Path) -> None:
    folder = build_tiny(tmp_path, CONFIG, "q0f16", **SIZES).folder
    target, output = parse_target("cpu:x86-64-v4-bf16-linux"), tmp_path / "library.so"
    options = CompileOptions(**SIZES, activations="bf16")
    with pytest.raises(UsageError, match=r"no product of q0f16 can use them.* in even groups"):
        compile_model(folder, target, output, options=options)
    assert not output.exists()


@pytest.mark.slow
def test_the_level_compiles_with_its_instruction(compiled: Compiled) -> None:
    target = parse_target("cpu:x86-64-v4-bf16-linux")
    disassembler = shutil.which("llvm-objdump")
    if disassembler is None:
        pytest.skip("needs llvm-objdump")
    library = compiled.folder / "level.so"
    options = CompileOptions(**SIZES, activations="bf16")
    compile_model(compiled.folder, target, library, options=options, cached=False)
    text = subprocess.run([disassembler, "-d", library], capture_output=True, check=True).stdout
    assert b"vdpbf16ps" in text
    assert b"vpdpwssd" not in text  # nothing is left to codes
