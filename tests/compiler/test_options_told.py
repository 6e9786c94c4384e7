"""A manifest tells the options that its library was compiled with: they make it again."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny_families

from sterna.base.artifact import AdapterRoom, CompileOptions, Manifest, decode, encode
from sterna.base.target import parse_target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.compiler import compile_source

MODULES = ("model.layers.{i}.self_attn.o_proj",)
CHAT = {"context_window_size": 64, "prefill_chunk_size": 32}


def manifest_of(family: str, options: CompileOptions, spec: str) -> Manifest:
    config = tiny_families.VARIANTS[family]
    folder = ModelFolder(Path(), CHAT, config, str(config["model_type"]), "q4f16_1", "same", {})
    return compile_source(folder, parse_target(spec), options).manifest


@pytest.mark.parametrize(
    ("family", "options", "spec"),
    [
        ("qwen3", CompileOptions(activations="i8", max_batch_size=3), "cpu:x86-64-v3"),
        ("qwen3", CompileOptions(kv_dtype="q8", prefill_chunk_size=20), "cpu:x86-64-v3"),
        ("qwen3", CompileOptions(adapters=AdapterRoom(2, 8, MODULES)), "cpu:x86-64-v3"),
        ("qwen3", CompileOptions(activations="f16"), "cuda:sm_80"),
        ("phi3", CompileOptions(sliding_window_size=-1), "cpu:x86-64-v3"),
        ("gemma3", CompileOptions(context_window_size=48), "cpu:x86-64-v3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_options_make_the_library_again(
    family: str, options: CompileOptions, spec: str
) -> None:
    made = manifest_of(family, options, spec)
    read = decode(encode(made))
    assert read.options == options
    assert manifest_of(family, read.options, spec) == made
    assert msgspec.structs.replace(made, options=CompileOptions()) != manifest_of(
        family, CompileOptions(), spec
    )
