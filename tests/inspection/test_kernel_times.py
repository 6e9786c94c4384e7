"""The time of a step by kernel: every launch is counted, and nothing is counted twice."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

from tiny_source import write_source

from sterna import jit
from sterna.base.errors import Unavailable
from sterna.base.target import host_target
from sterna.checkpoint.model_folder import open_model
from sterna.cli.main import main
from sterna.compiler import CompileOptions, compile_source
from sterna.inspection import kernel_times as module
from sterna.inspection.costs import launches
from sterna.inspection.kernel_times import kernel_times, timed_source


@pytest.fixture
def folder(tmp_path):
    return jit.model_folder(write_source(tmp_path / "M"))


def test_each_kernel_has_its_time(folder):
    model, target = open_model(folder), host_target()
    source = compile_source(model, target, CompileOptions())
    steps = {(20, 1, 1): "decode", (0, 24, 1): "verify", (0, 40, 1): "prefill", (9, 1, 8): "verify"}
    times = kernel_times(source, target, model.tensors, list(steps), threads=2)
    entries = {entry.name: set(launches(entry)) for entry in source.manifest.entries}
    for entry, step in zip(steps.values(), times, strict=True):
        assert set(step.kernels) == entries[entry]
        inside = sum(step.kernels.values())
        assert all(took > 0 for took in step.kernels.values())
        assert 0 <= step.waiting < inside
        assert step.seconds == pytest.approx(inside + step.host)
        assert step.host > 0


def test_every_call_of_parallel_is_some_kernels(folder):
    source = compile_source(open_model(folder), host_target(), CompileOptions())
    text, sites = timed_source(source)
    assert set(sites) == set(source.parts.kernels)
    assert f"sterna_spent[{len(sites)}][2]" in text


def test_a_system_without_the_clock_is_told(folder, monkeypatch):
    monkeypatch.delattr(module.time, "clock_gettime")
    model, target = open_model(folder), host_target()
    source = compile_source(model, target, CompileOptions())
    with pytest.raises(Unavailable, match="not measured on this system"):
        kernel_times(source, target, model.tensors, [(0, 1, 1)], threads=1)


def test_bench_tells_kernels_waiting_and_host(folder, capsys):
    sizes = ["--prompt-tokens", "16", "--generate-tokens", "4", "--repetitions", "1"]
    assert main(["bench", str(folder), *sizes, "--parallel", "1,3", "--threads", "2"]) == 0
    told = capsys.readouterr().out
    phases = [f"The time of {name}\n" for name in ("pp16", "tg4", "tg4x3")]
    for phrase in (*phases, "attention", "host", "waited"):
        assert phrase in told


def test_a_library_with_other_options_has_no_times(folder, tmp_path, capsys):
    library = tmp_path / "other.so"
    asked = ["--overrides", "prefill_chunk_size=8", "--output", str(library)]
    assert main(["compile", str(folder), *asked]) == 0
    sizes = ["--prompt-tokens", "16", "--generate-tokens", "4", "--repetitions", "1"]
    assert main(["bench", str(folder), *sizes, "--model-lib", str(library)]) == 0
    told = capsys.readouterr()
    assert "compiled with other options" in told.err
    assert "The time of" not in told.out
