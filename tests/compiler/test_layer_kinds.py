"""Layers of several kinds compiled: depth costs neither kernels nor launches."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny_families as tiny

from sterna.base.artifact import CompileOptions, Entry, Repeat
from sterna.base.target import host_target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.compiler import Source, compile_source


def compiled(layers: int) -> Source:
    """Gemma 3's pattern, two layers with a window and one without, at some depth."""
    config = {**tiny.VARIANTS["gemma3"], "num_hidden_layers": layers}
    chat = {"context_window_size": 64, "prefill_chunk_size": 32}
    folder = ModelFolder(Path(), chat, config, "gemma3_text", "q0f32", str(layers), {})
    return compile_source(folder, host_target(), CompileOptions())


def repeats(entry: Entry) -> list[Repeat]:
    return [step for step in entry.steps if isinstance(step, Repeat)]


def test_depth_changes_only_how_often_a_body_runs() -> None:
    shallow, deep = compiled(8), compiled(26)
    assert shallow.table.kernels.keys() == deep.table.kernels.keys()
    for few, many in zip(shallow.manifest.entries, deep.manifest.entries, strict=True):
        assert [(r.first, r.stride, r.count) for r in repeats(few)] == [(0, 3, 2), (6, 1, 2)]
        assert [(r.first, r.stride, r.count) for r in repeats(many)] == [(0, 3, 8), (24, 1, 2)]
        assert [r.body for r in repeats(few)] == [r.body for r in repeats(many)]
        assert {launch.layer for launch in repeats(many)[0].body} == {0, 1, 2}


def test_weights_are_bound_layer_by_layer() -> None:
    names = [p.name for p in compiled(8).manifest.params if ".layers." in p.name]
    layers = [int(name.split(".")[2]) for name in names]
    assert layers == sorted(layers)
    assert set(layers) == set(range(8))
    assert len(names) == len(set(names))
