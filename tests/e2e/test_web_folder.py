"""The folder for browsers, written whole, read back, and run natively with the CPU's logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from compiled import Compiled, build_tiny, tiny

from sterna import Engine
from sterna.base.artifact import CompileOptions
from sterna.base.errors import ArtifactError, Unavailable, UsageError
from sterna.base.target import parse_target
from sterna.base.web import INDEX, WebIndex
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.cli.main import main
from sterna.runtime.devices import library_in
from sterna.runtime.library import read_manifest
from sterna.runtime.memory import memory_plan
from sterna.runtime.web_folder import read_index, verify
from sterna.web_folder import compile_folder

OPTIONS = {"prefill_chunk_size": 16, "max_batch_size": 2, "context_window_size": 64}
TARGET = parse_target("webgpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("model")
    return build_tiny(root, tiny.VARIANTS["llama2-gqa"], "q4f16_1", **OPTIONS)


@pytest.fixture(scope="module")
def written(model: Compiled, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WebIndex]:
    output = tmp_path_factory.mktemp("web") / "out"
    options = CompileOptions(**OPTIONS)
    return output, compile_folder(model.folder, TARGET, output, options=options)


def test_the_folder_is_what_its_index_says(model: Compiled, written: tuple[Path, WebIndex]) -> None:
    folder, index = written
    assert read_index(folder) == index
    verify(folder, index)
    assert {p.name for p in folder.iterdir()} == {INDEX, *(f.name for f in index.files)}
    assert {p.target for p in index.programs} == set(TARGET.packaged)
    own = {t.name: t for t in index.weights.tensors}
    for name, ref in read_mlc_folder(model.folder).tensors.items():
        t = own[name]
        data = (folder / t.file).read_bytes()[t.offset : t.offset + t.size]
        assert data == ref.path.read_bytes()[ref.offset : ref.offset + ref.nbytes]
    for program in index.programs:
        manifest = read_manifest(folder / program.file)
        assert manifest.model == index.model
        assert program.features == manifest.features
        assert {(p.name, p.dtype, p.shape) for p in manifest.params} <= {
            (t.name, t.dtype, t.shape) for t in own.values()
        }
        plan = memory_plan(manifest, -(-64 // manifest.kv_cache.page_size), 1)
        assert program.memory.kv_cache == plan.kv_cache
        assert program.memory.io < plan.io  # of one sequence
        assert program.limits["maxStorageBuffersPerShaderStage"] <= TARGET.most_buffers


def test_it_is_written_again_and_keeps_what_is_not_its_own(
    model: Compiled, written: tuple[Path, WebIndex]
) -> None:
    folder, index = written
    (folder / "notes.txt").write_text("mine")
    (folder / "webgpu.sterna").write_bytes(b"damaged")
    options = CompileOptions(**OPTIONS)
    assert compile_folder(model.folder, TARGET, folder, options=options) == index
    verify(folder, index)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "notes.txt").unlink()


def test_what_is_refused(model: Compiled, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    file = tmp_path / "file"
    file.write_text("")
    for output, told in ((other, "thesis.txt"), (file, "is a file"), (model.folder, "itself")):
        with pytest.raises(UsageError, match=told):
            compile_folder(model.folder, TARGET, output)
    with pytest.raises(UsageError, match="name the library to write"):
        compile_folder(model.folder, parse_target("cpu"), tmp_path / "new")
    with pytest.raises(UsageError, match="kv_dtype is f16, but webgpu:subgroups stores no such"):
        compile_folder(
            model.folder, TARGET, tmp_path / "new", options=CompileOptions(kv_dtype="f16")
        )
    assert {path.name for path in tmp_path.iterdir()} == {"other", "file"}


def test_from_the_command_line(
    model: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(model.folder), "--output", f"{tmp_path}/out/"]
    limits = ["--overrides", "context_window_size=32;prefill_chunk_size=8;max_batch_size=1"]
    assert main(["compile", *flags, "--target", "webgpu:f16-subgroups", *limits]) == 0
    assert "programs webgpu:f16-subgroups" in capsys.readouterr().out
    index = read_index(tmp_path / "out")
    verify(tmp_path / "out", index)
    assert [p.features for p in index.programs] == [("shader-f16", "subgroups")]
    assert main(["compile", *flags, "--target", "cpu", *limits]) != 0
    assert "name the library to write" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_natively(model: Compiled, written: tuple[Path, WebIndex]) -> None:
    folder, _ = written
    try:
        library = library_in(folder, "webgpu")
    except Unavailable as error:
        pytest.skip(str(error))
    assert library.parent == folder
    with pytest.raises(ArtifactError, match="cannot run on cpu"):
        library_in(folder, "cpu")
    answers = []
    for name, lib, device in (
        (folder, None, "webgpu"),
        (model.folder, folder, "webgpu"),
        (model.folder, model.library, "cpu"),
    ):
        with Engine(name, lib, device) as engine:
            made = engine.completions.create(prompt="w3 w9 w27", max_tokens=8, temperature=0)
            answers.append(made.choices[0].text)
    assert answers[0] == answers[1] == answers[2]
    whole = (folder / INDEX).read_bytes()
    (folder / INDEX).write_text(json.dumps({"format": 9}))
    with pytest.raises(ArtifactError, match="has format 9"):
        library_in(folder, "webgpu")
    (folder / INDEX).write_bytes(whole)
