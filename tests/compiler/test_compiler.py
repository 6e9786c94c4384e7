"""The compiler as a whole: entry points, manifest, dumps, options, cache."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import tiny

from sterna.base.artifact import CompileOptions, Entry, Launch, Manifest, decode, encode
from sterna.base.errors import UsageError
from sterna.base.target import Target, host_target
from sterna.checkpoint.model_folder import ModelFolder, open_model
from sterna.compiler import DECODE_TOKENS, Source, compile_model, compile_source, library_key
from sterna.convert import convert_weight, gen_config
from sterna.ir.equal import equal
from sterna.ir.parser import parse_group, parse_module, parse_primfunc
from sterna.ir.printer import to_text
from sterna.ir.verify import verify, verify_group, verify_primfunc
from sterna.passes.plan_memory import ALIGN
from sterna.passes.prepack import ROW_TILE
from sterna.program import self_contained
from sterna.schedule.choose import streams_of

SMALL = CompileOptions(prefill_chunk_size=64, max_batch_size=4)
ENTRIES = ("prefill", "decode", "verify")


def converted(root: Path, config: dict[str, object], quantization: str) -> Path:
    """A model folder of random weights."""
    tiny.write_folder(root / "source", config, tiny.weights(config))
    vocab = {f"w{i}": i for i in range(int(str(config["vocab_size"])))}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}
    (root / "source" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    convert_weight(root / "source", root / "model", quantization=quantization)
    gen_config(root / "source", root / "model", quantization=quantization)
    return root / "model"


@dataclass(frozen=True)
class Compiled:
    """One model compiled with a dump, and its folder."""

    folder: ModelFolder
    library: Path
    dump: Path
    source: Source


@pytest.fixture(scope="module")
def target() -> Target:
    return host_target()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, target: Target) -> Compiled:
    root = tmp_path_factory.mktemp("compiled")
    folder = converted(root, tiny.VARIANTS["llama3.2-tied"], "q4f16_1")
    library, dump = root / f"model{target.suffix}", root / "dump"
    compile_model(folder, target, library, options=SMALL, debug_dump=dump, cached=False)
    opened = open_model(folder, weights=False)
    return Compiled(opened, library, dump, compile_source(opened, target, SMALL))


def launches(entry: Entry) -> Iterator[Launch]:
    for step in entry.steps:
        yield from (step,) if isinstance(step, Launch) else step.body


def test_the_manifest_survives_and_travels_in_the_library(compiled: Compiled) -> None:
    manifest: Manifest = compiled.source.manifest
    assert decode(encode(manifest)) == manifest
    assert encode(manifest) in compiled.library.read_bytes()
    assert tuple(e.name for e in manifest.entries) == ENTRIES
    assert manifest.model.fingerprint == compiled.folder.fingerprint
    assert (manifest.model.prefill_chunk_size, manifest.model.max_batch_size) == (64, 4)
    most = {e.name: {d.name: d.hi for d in e.dims} for e in manifest.entries}
    assert [most[e]["n"] for e in ENTRIES] == [64, DECODE_TOKENS, 32]
    assert [most[e]["r"] for e in ENTRIES] == [32, DECODE_TOKENS, 32]


def test_params_come_layer_by_layer_as_the_folder_names_them(
    compiled: Compiled, target: Target
) -> None:
    names = [p.name for p in compiled.source.manifest.params]
    assert len(names) == len(set(names))
    layers = [int(found[1]) for n in names if (found := re.search(r"layers\.(\d+)\.", n))]
    assert layers == sorted(layers)
    assert Counter(layers)[0] == Counter(layers)[1] > 0
    first = [n.replace(".0.", ".1.") for n in names if ".layers.0." in n]
    assert first == [n for n in names if ".layers.1." in n]
    stored = open_model(compiled.folder.folder).tensors
    assert set(names) == set(stored)
    for param in compiled.source.manifest.params:
        assert param.shape == tuple(stored[param.name].shape)
        assert param.row_tile == (ROW_TILE if len(param.shape) == 2 else 0)
        assert param.streams == (streams_of(target) if param.dtype == "u32" else 1)


def test_launches_name_what_exists(compiled: Compiled) -> None:
    manifest = compiled.source.manifest
    kernels = {k.name for k in manifest.kernels}
    params = {p.name for p in manifest.params} | {"rope.inv_freq"}
    used = set()
    for entry in manifest.entries:
        buffers = [b.name for b in (*entry.inputs, *entry.outputs, *entry.arena)] + ["kv_cache"]
        assert len(buffers) == len(set(buffers))
        for launch in launches(entry):
            used.add(launch.kernel)
            assert {a.replace("{i}", "0") for a in launch.args} <= params | set(buffers)
        read = {a for launch in launches(entry) for a in launch.args}
        assert {b.name for b in entry.arena} <= read
        assert all(b.offset % ALIGN == 0 for b in entry.arena)
        assert entry.arena_bytes > max(b.offset for b in entry.arena)
        weights = {a for a in read if "." in a and a != "rope.inv_freq"}
        assert {w.replace("{i}", str(i)) for w in weights for i in (0, 1)} == params - {
            "rope.inv_freq"
        }
    assert manifest.sampler is not None
    used |= {launch.kernel for launch in launches(manifest.sampler)}
    assert used == kernels


def test_equal_kernels_are_made_once(compiled: Compiled) -> None:
    by_entry = {e.name: [la.kernel for la in launches(e)] for e in compiled.source.manifest.entries}
    prefill, verify = ([k for k in by_entry[e] if "matmul" not in k] for e in ("prefill", "verify"))
    assert prefill == verify  # products are scheduled for as many rows as a step has
    table = compiled.source.table.kernels
    texts = [to_text(k.func).replace(f"def {title}(", "def f(") for title, k in table.items()]
    assert len(texts) == len(set(texts))
    attention = [k for k in table if k.startswith("attention")]
    assert len(attention) == 2  # tiles, and pieces for decode


def test_kernels_over_different_dims_stay_apart(compiled: Compiled) -> None:
    """The final norm runs over logit rows, a layer's over tokens: a launch passes dims by name."""
    norms = [k for t, k in compiled.source.table.kernels.items() if re.match(r"rms_norm(_\d)?$", t)]
    assert sorted(d.name for k in norms for d in k.func.dims) == ["n", "r"]


def test_dumped_modules_read_back(compiled: Compiled) -> None:
    files = sorted(p for p in compiled.dump.iterdir() if re.match(r"0[0-5]_", p.name))
    assert [p.name[:2] for p in files] == ["00", "01", "02", "03", "04", "05"]
    for path in files:
        text = path.read_text()
        module = parse_module(text)
        verify(module)
        assert to_text(module).strip() == text.strip(), path.name


def definitions(path: Path) -> list[str]:
    return [t for t in re.split(r"\n\n+(?=@)", path.read_text().strip()) if t]


@pytest.mark.parametrize("entry", ENTRIES)
def test_dumped_groups_read_back(compiled: Compiled, entry: str) -> None:
    found = definitions(compiled.dump / f"07_{entry}_groups.txt")
    assert len(found) > 10
    for text in found:
        if text.startswith("@group"):
            group = parse_group(text)
            verify_group(group)
            assert equal(parse_group(to_text(group)), group)
        else:
            verify_primfunc(parse_primfunc(text))


def test_dumped_loops_read_back_as_what_was_compiled(compiled: Compiled) -> None:
    found = definitions(compiled.dump / "09_loops.txt")
    table = compiled.source.table.kernels
    assert len(found) == len(table)
    for text, kernel in zip(found, table.values(), strict=True):
        parsed = parse_primfunc(text)
        verify_primfunc(parsed)
        assert equal(parsed, self_contained(kernel.func)), kernel.func.name


def test_dumped_source_and_schedules_are_whole(compiled: Compiled) -> None:
    assert (compiled.dump / "10_library.c").read_text() == compiled.source.text
    schedules = (compiled.dump / "08_schedules.txt").read_text()
    assert re.findall(r"^# (\w+)$", schedules, re.M) == list(compiled.source.table.kernels)


def test_two_compiles_give_the_same_bytes(
    compiled: Compiled, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without the cache was made by the fixture; one fills the cache, one is found there."""
    monkeypatch.setenv("STERNA_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    outputs = [tmp_path / name / f"m{target.suffix}" for name in ("a", "b")]
    outputs[0].parent.mkdir()
    for output in outputs:
        compile_model(compiled.folder.folder, target, output, options=SMALL, progress=said.append)
    assert outputs[0].read_bytes() == outputs[1].read_bytes() == compiled.library.read_bytes()
    assert [s for s in said if "in the cache" in s] == [f"found {outputs[1].name} in the cache"]
    assert said[-1].endswith("in the cache")


def kernel_count(root: Path, target: Target, layers: int) -> tuple[int, int, str]:
    config = {**tiny.VARIANTS["llama3.2-tied"], "num_hidden_layers": layers}
    for name in ("source", "model"):
        (root / name).mkdir(parents=True, exist_ok=True)
    folder = ModelFolder(root, {}, dict(config), "llama", "q4f16_1", "0" * 64, {})
    source = compile_source(folder, target, SMALL)
    steps = source.manifest.entry("decode").steps
    counts = [s.count for s in steps if not isinstance(s, Launch)]
    assert counts == [layers]
    return len(source.table.kernels), source.manifest.entry("decode").arena_bytes, source.text


def test_more_layers_take_no_more_kernels(target: Target, tmp_path: Path) -> None:
    few, many = (kernel_count(tmp_path, target, layers) for layers in (32, 64))
    assert few[:2] == many[:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_window_size": 100_000}, "longer than the model's"),
        ({"context_window_size": 0}, "must be positive"),
        ({"context_window_size": 64, "prefill_chunk_size": 65}, "more than the context"),
        ({"prefill_chunk_size": 0}, "must be positive"),
        ({"max_batch_size": -1}, "must be positive"),
    ],
)
def test_options_that_cannot_be_are_refused(
    compiled: Compiled, target: Target, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compile_source(compiled.folder, target, CompileOptions(**options))


def test_every_option_is_part_of_the_key(compiled: Compiled, target: Target) -> None:
    asked = [
        CompileOptions(),
        CompileOptions(context_window_size=128),
        CompileOptions(prefill_chunk_size=128),
        CompileOptions(max_batch_size=128),
        CompileOptions(sliding_window_size=128),
        CompileOptions(attention_sink_size=128),
    ]
    keys = [library_key(compiled.folder, target, options) for options in asked]
    assert len(set(keys)) == len(keys)
    assert library_key(compiled.folder, target, CompileOptions()) == keys[0]
