"""The report on a library: numbers against sums by hand, and files that are none."""

import re

import msgspec
import pytest
import sample_library
from sample_library import sample, write

from sterna import inspection
from sterna.base.artifact import FORMAT, Buffer, Kernel, Launch, Repeat
from sterna.base.errors import ArtifactError, Error, UsageError
from sterna.inspection.costs import launches, step_costs, typical_dims

WIDTH = 100


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return write(tmp_path_factory.mktemp("lib") / "M.so")


@pytest.fixture(scope="module")
def text(library):
    return inspection.report(library, 100)


def section(text, heading):
    """The lines of a section, without its heading."""
    _, _, rest = text.partition(f"\n{heading}\n{'-' * len(heading)}\n")
    assert rest, f"no section {heading}"
    return re.split(r"\n\n[^\n]+\n-+\n(?=\S)", rest)[0]


def row(text, first):
    """The words of the first line that begins with `first`."""
    line = next(line for line in text.splitlines() if line.split()[:1] == [first])
    return line.split()


def test_all_that_is_promised_is_there(text):
    headings = ["Library", "Functions", "Launch program", "Kernels of prefill", "Kernels of decode",
                "Schedules", "Memory", "Weights"]  # fmt: skip
    places = [text.index(f"\n{heading}\n---") for heading in headings]
    assert places == sorted(places)
    assert max(len(line) for line in text.splitlines()) <= WIDTH


def test_functions_have_symbolic_shapes_and_bounds(text):
    shown = " ".join(section(text, "Functions").split())
    assert "prefill(tokens: i32[n], positions: i32[n], page_indptr: i32[b + 1]" in shown
    assert "-> logits: f32[r, 512] where n in 1..64, b in 1..4, p in 1..64" in shown


def test_the_program_keeps_its_repeat(text):
    prefill, _, decode = section(text, "Launch program").partition("\ndecode:\n")
    assert prefill.startswith("prefill:\n    embed(tokens, model.embed_tokens.q_weight, x)\n")
    assert "    repeat i in 0..2:\n        qkv_proj(x, model.layers.{i}.self_attn" in prefill
    assert decode.rstrip().endswith("    logits(x, lm_head.q_weight, logits)")


def test_costs_at_a_context():
    prefill, decode = step_costs(sample(), 100)
    costs = {cost.kernel.name: cost for cost in decode.kernels}
    assert (costs["attention"].flops, costs["attention"].bytes) == (4 * 100 * 64, 100 * 256 + 512)
    assert costs["attention"].launches == sample_library.LAYERS
    assert costs["embed"].intensity == 0
    assert costs["qkv_proj"].intensity == 2 * 192 * 64 / (192 * 36 + 1024)
    by_hand = 2 * (2 * 192 * 64 + 4 * 100 * 64 + 2 * 256 * 64) + 2 * 512 * 64
    assert decode.flops == by_hand
    assert prefill.dims["n"] == sample_library.CHUNK


def test_costs_are_shown(text):
    kernels = section(text, "Kernels of decode")
    assert "context of 100 cached tokens; n = 1, b = 1, p = 7, r = 1, t = 1." in kernels
    assert row(kernels, "attention") == "attention attention 2 1 25.6 k 25.5 KiB 0.98".split()
    assert row(kernels, "embed")[-1] == "0.00"


def test_the_context_counts_and_defaults_to_a_quarter_of_the_window(library, text):
    assert "context of 64 cached tokens" in inspection.report(library)
    assert "context of 0 cached tokens" in inspection.report(library, 0)
    assert row(section(text, "Kernels of decode"), "attention") != row(
        section(inspection.report(library, 200), "Kernels of decode"), "attention"
    )


def test_dims_stay_within_bounds():
    manifest = sample()
    entry = msgspec.structs.replace(manifest.entries[0], name="verify")
    assert typical_dims(entry, manifest, 100) == {
        "n": 32, "b": 1, "p": 9, "r": 4, "t": 1, "context": 100,
    }  # fmt: skip
    sliding = msgspec.structs.replace(manifest.model, sliding_window_size=32)
    manifest = msgspec.structs.replace(manifest, model=sliding)
    assert typical_dims(entry, manifest, 100)["context"] == 32


def test_a_kernel_may_be_launched_in_and_out_of_a_repeat():
    steps = (Launch("a", ()), Repeat("i", 5, (Launch("a", ()), Launch("b", ()))), Launch("a", ()))
    entry = msgspec.structs.replace(sample().entries[0], steps=steps)
    assert launches(entry) == {"a": 7, "b": 5}


def test_schedules_are_shown_step_by_step(text):
    shown = section(text, "Schedules")
    assert "      split(acc, n, no, ni, 8)\n      vectorize(acc, ni)\n" in shown
    assert "bytes = context * 256 + n * 512" in shown


def test_memory(text):
    memory = section(text, "Memory")
    assert "KV cache of one window (256 tokens, 16 pages)" in memory
    assert "a token" in memory
    assert "512 B" in memory
    assert re.search(r"a context of 100 tokens\s+56\.0 KiB", memory)  # 7 pages of 8 KiB
    assert row(memory, "prefill") == "prefill 64.0 KiB 3 4.0 KiB".split()


def test_weights_against_fp16(text):
    weights = section(text, "Weights")
    assert row(weights, "q4f16_1")[1:3] == ["10", "147,456"]
    assert row(weights, "q4f16_1")[-3:] == ["3.56", "x", "4.50"]
    assert row(weights, "norm")[-3:] == ["1.00", "x", "16.00"]
    groups = [line.split()[0] for line in weights.splitlines() if "%" in line]
    assert groups == "q4f16_1 q0f16 total embedding attention mlp norm head total".split()


def test_a_context_past_the_window(library):
    with pytest.raises(UsageError, match=r"--context is 257.*window of 256 tokens"):
        inspection.report(library, 257)


def test_long_names_wrap_in_their_column(tmp_path):
    long = "fused_" + "dequantize_matmul_" * 8
    kernels = tuple(msgspec.structs.replace(k, op=long) for k in sample().kernels[:1])
    manifest = _with(steps=(Launch("embed", ()),))
    manifest = msgspec.structs.replace(manifest, kernels=kernels)
    table = section(inspection.report(write(tmp_path / "M.so", manifest)), "Kernels of prefill")
    lines = table.split("---\n")[1].split("\n---")[0].splitlines()
    assert max(len(line) for line in lines) <= WIDTH
    pieces = [line.removeprefix("embed").split()[0] for line in lines]
    assert "".join(pieces) == long


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty, not a library"),
        (b"\x7fELF" + bytes(500), "is not a library that `sterna compile` made"),
        (1000, "damaged or truncated"),
        (-10, "is truncated: it has"),
    ],
)
def test_files_that_are_no_library(data, sentence, tmp_path):
    path = tmp_path / "M.so"
    path.write_bytes(write(path).read_bytes()[:data] if isinstance(data, int) else data)
    with pytest.raises(ArtifactError, match=sentence):
        inspection.report(path)


def test_a_manifest_of_another_format(tmp_path):
    path = write(tmp_path / "M.so", sample(format=FORMAT + 1))
    with pytest.raises(ArtifactError, match="compile the model again"):
        inspection.report(path)


def _with(**changes):
    entry = msgspec.structs.replace(sample().entries[0], **changes)
    return sample(entries=(entry,))


HUGE = " * ".join(["9" * 90] * 9)


@pytest.mark.parametrize(
    "manifest",
    [
        _with(steps=(Launch("nothing", ()),)),
        sample(kernels=(Kernel("embed", "", "", "1 - 2", "1", "1"), *sample().kernels[1:])),
        sample(kernels=(Kernel("embed", "", "", "q", "1", "1"), *sample().kernels[1:])),
        sample(kernels=(Kernel("embed", "", "", HUGE, "1", "1"), *sample().kernels[1:])),
        _with(inputs=(Buffer("tokens", "i32", (HUGE,)),)),
        _with(inputs=(Buffer("tokens", "i33", ("n",)),)),
        _with(arena_bytes=-1),
        _with(dims=()),
        sample(kv_cache=msgspec.structs.replace(sample().kv_cache, page_size=0)),
        sample(params=(sample().params[0],)),
    ],
)
@pytest.mark.parametrize("show", [inspection.report, inspection.html])
def test_manifests_that_do_not_hold_together_end_in_a_sentence(manifest, show, tmp_path):
    with pytest.raises(Error) as raised:
        show(write(tmp_path / "M.so", manifest))
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize(
    "manifest",
    [
        sample(entries=(), kernels=(), params=()),
        _with(steps=()),
        _with(steps=(Repeat("i", 0, (Launch("mlp", ("x",)),)),)),
        _with(arena=(), arena_bytes=0),
        sample(kernels=tuple(Kernel(k.name, "", "", "5", "0", "1") for k in sample().kernels)),
        sample(model=msgspec.structs.replace(sample().model, context_window_size=0)),
    ],
)
def test_odd_but_sound_manifests_are_shown(manifest, tmp_path):
    path = write(tmp_path / "M.so", manifest)
    assert inspection.report(path)
    assert "<svg" in inspection.html(path)
