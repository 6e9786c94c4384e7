"""From what a user names to a folder and a library: made once, found again, never stale."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny_source import write_source

from sterna import compiler, demo, found, jit, local
from sterna.base.errors import CheckpointError, CompileError, UsageError
from sterna.checkpoint.model_folder import open_model


@pytest.fixture
def compiled(monkeypatch):
    """Stand in for the compiler; the list of what it was asked for."""
    asked = []

    def compile_model(folder, target, output, *, options, cached, tuned, progress):
        asked.append((Path(folder), target.spec, options))
        output.write_bytes(b"library")
        return output

    monkeypatch.setattr(jit, "compile_model", compile_model)
    return asked


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "M")


def test_a_source_is_converted_and_compiled_once(source, own_cache, compiled):
    told = []
    folder, library = jit.ensure(source, progress=lambda *report: told.append(report))
    assert open_model(folder).quantization == jit.default_quantization(source)
    assert folder.is_relative_to(own_cache)
    assert library.is_relative_to(own_cache)
    messages = [f"{stage}: {detail}" for stage, detail, _, total in told if total == 0]
    assert f"convert: made {folder}" in messages
    assert f"compile: made {library}" in messages
    shares = [(done, total) for _, _, done, total in told if total]
    assert shares
    assert shares[-1][0] == shares[-1][1]
    told.clear()
    assert jit.ensure(source, progress=lambda *report: told.append(report)) == (folder, library)
    assert told == []
    assert len(compiled) == 1


def test_everything_that_shapes_a_model_makes_another_entry(source, compiled):
    first, library = jit.ensure(source)
    again = jit.ensure(source, quantization="q8f16_1")
    assert again[0] != first
    assert again[1] != library
    assert jit.ensure(source, "cpu:aarch64-macos")[0] == first
    assert jit.ensure(source, "cpu:aarch64-macos")[1].suffix == ".dylib"
    options = jit.CompileOptions(context_window_size=32)
    assert jit.ensure(source, options=options)[1] != library
    os.utime(source / "model.safetensors", ns=(1, 1))
    assert jit.ensure(source)[0] != first


def test_another_sterna_compiles_again(source, compiled, monkeypatch):
    first = jit.ensure(source)
    for module in (jit, compiler):
        monkeypatch.setattr(module, "source_state", lambda *rooms: ("0.0.0",))
    assert jit.ensure(source) != first


def test_a_converted_folder_is_used_as_it_is(source, tmp_path, own_cache, compiled):
    folder = jit.model_folder(source, "q4f16_1")
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    found, library = jit.ensure(own)
    assert found == own
    assert library.name.startswith("own-cpu-")
    with pytest.raises(UsageError, match=r"quantized as q4f16_1, not as q0f32"):
        jit.ensure(own, quantization="q0f32")


def test_a_conversion_that_failed_is_made_again(source, compiled, monkeypatch):
    def fail(*args, **options):
        raise CheckpointError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(jit, "gen_config", fail)
        with pytest.raises(CheckpointError):
            jit.ensure(source)
    assert open_model(jit.ensure(source)[0]).tensors


def test_a_compile_that_failed_leaves_no_library(source, monkeypatch, own_cache):
    def fail(*args, **options):
        raise CompileError("no")

    monkeypatch.setattr(jit, "compile_model", fail)
    with pytest.raises(CompileError):
        jit.ensure(source)
    assert [path.name for path in (own_cache / "libraries").iterdir()] == [".sterna-cache"]


def test_groups_that_do_not_fill_a_row_keep_float16(tmp_path):
    assert jit.default_quantization(write_source(tmp_path / "a", hidden_size=128,
                                                 intermediate_size=256)) == "q4f16_1"  # fmt: skip
    path = write_source(tmp_path / "b") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "intermediate_size": 172}))
    assert jit.default_quantization(path.parent) == "q0f16"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [("/nowhere/at/all", "there is no folder"), ("HF://x", "is not of the form"), ("", "folder")],
)
def test_what_is_no_model(model, sentence):
    with pytest.raises((UsageError, CheckpointError), match=sentence):
        jit.ensure(model)


def test_no_model_is_the_demo_model(monkeypatch, tmp_path, compiled):
    source = write_source(tmp_path / "D")
    monkeypatch.setattr(demo, "FOLDER", source)
    folder, _ = jit.ensure()
    assert folder.name == f"sterna-demo-{demo.QUANTIZATION}"
    assert open_model(folder).quantization == demo.QUANTIZATION


def test_a_folder_with_its_library_never_asks_the_compile_wing(source, monkeypatch):
    folder = jit.model_folder(source)
    monkeypatch.setitem(sys.modules, "sterna.jit", None)  # an import of it would fail now
    monkeypatch.delattr("sterna.jit")
    located = local.locate(folder, "M.so")
    assert (located.folder, located.library) == (folder, Path("M.so"))
    assert set(located.weights) == set(open_model(folder).tensors)


def test_a_model_that_was_found_is_found_without_the_compile_wing(source, compiled, monkeypatch):
    first = local.locate(source)
    with monkeypatch.context() as serving:
        serving.setitem(sys.modules, "sterna.jit", None)  # an import of it would fail now
        serving.delattr("sterna.jit")
        again = local.locate(source)
        with pytest.raises(ImportError):
            local.locate(source, quantization="q8f16_1")
        with pytest.raises(ImportError):
            local.locate(source, kv_dtype="q8")
    assert (again.folder, again.library) == (first.folder, first.library)
    assert set(again.weights) == set(first.weights)


@pytest.mark.parametrize("what", ["weights", "compiler", "plans", "Sterna", "library", "entry"])
def test_what_was_found_is_looked_for_again(what, source, compiled, own_cache, monkeypatch):
    first = local.locate(source)
    assert local.locate(source).library == first.library
    before = found.identity(source, "auto", (None, None))
    if what == "weights":
        os.utime(source / "model.safetensors", ns=(1, 1))
    elif what == "compiler":
        monkeypatch.setenv("STERNA_CC", sys.executable)
    elif what == "plans":
        (own_cache / "tuning").mkdir()
        (own_cache / "tuning" / "plans.sqlite").write_bytes(b"")
    elif what == "Sterna":
        monkeypatch.setattr(found, "source_state", lambda *rooms: ("0.0.0",))
    elif what == "library":
        first.library.unlink()
    else:
        (own_cache / "found" / before).write_bytes(b"[1, 2")
    if what in ("library", "entry"):
        assert found.recall(before) is None
    else:
        assert found.identity(source, "auto", (None, None)) != before
    if what != "compiler":  # this one would be asked for its version
        assert local.locate(source).library.is_file()


def test_only_folders_of_this_machine_are_remembered(source):
    for model in ("HF://user/repo", "ollama:llama3", source / "nowhere", source / "config.json"):
        assert found.identity(model, "auto", (None, None)) is None
    assert found.identity(source, "nothing", (None, None)) is None
