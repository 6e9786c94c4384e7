"""The time of a step by kernel: every launch is counted, and nothing is counted twice."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cli"))

from tiny_source import write_source

from sterna import jit
from sterna.base.artifact import CompileOptions
from sterna.base.errors import Unavailable
from sterna.base.target import host_target
from sterna.checkpoint.model_folder import open_model
from sterna.cli.main import main
from sterna.compiler import compile_model, compile_source
from sterna.inspection import kernel_times as module
from sterna.inspection.costs import launches
from sterna.inspection.kernel_times import kernel_times, timed_source
from sterna.ir.equal import digest
from sterna.runtime.library import read_manifest
from sterna.schedule.choose import plan_of
from sterna.tune.space import everything

SIZES = ["--prompt-tokens", "16", "--generate-tokens", "4", "--repetitions", "1"]


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
    assert main(["bench", str(folder), *SIZES, "--parallel", "1,3", "--threads", "2"]) == 0
    told = capsys.readouterr().out
    phases = [f"The time of {name}\n" for name in ("pp16", "tg4", "tg4x3")]
    for phrase in (*phases, "attention", "host", "waited"):
        assert phrase in told


def test_a_library_of_any_options_has_times(folder, tmp_path, capsys):
    library = tmp_path / "other.so"
    asked = ["--overrides", "prefill_chunk_size=8", "--activations", "f32", "--kv-dtype", "q8"]
    assert main(["compile", str(folder), *asked, "--output", str(library)]) == 0
    assert main(["bench", str(folder), *SIZES, "--model-lib", str(library)]) == 0
    told = capsys.readouterr()
    assert "not told" not in told.err
    assert "The time of pp16\n" in told.out


def test_a_library_of_plans_that_are_elsewhere_has_no_times(folder, tmp_path, capsys):
    target, library = host_target(), tmp_path / "other.so"
    plain = compile_source(open_model(folder), target, CompileOptions())
    scheduled = plain.table.scheduled
    tuned = next(
        {digest(group): plan}
        for entry in plain.entries
        for group in entry.scheduled.values()
        for plan in everything(plan_of(group, target))
        if scheduled(group, plan)[0] != scheduled(group, plan_of(group, target))[0]
    )
    compile_model(folder, target, library, tuned=tuned, cached=False)
    assert read_manifest(library).kernels != plain.manifest.kernels
    assert main(["bench", str(folder), *SIZES, "--model-lib", str(library)]) == 0
    told = capsys.readouterr()
    assert "tuned plans that are not here" in told.err
    assert "The time of" not in told.out


def test_a_folder_that_was_changed_since_has_no_times(folder, tmp_path, capsys):
    copy, library = tmp_path / "copy", tmp_path / "other.so"
    shutil.copytree(folder, copy)
    asked = ["--overrides", "prefill_chunk_size=64", "--output", str(library)]
    assert main(["compile", str(copy), *asked]) == 0
    config = copy / "mlc-chat-config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"context_window_size": 32}))
    assert main(["bench", str(copy), *SIZES, "--model-lib", str(library)]) == 0
    told = capsys.readouterr()
    assert "of another configuration" in told.err
    assert "tg4" in told.out
