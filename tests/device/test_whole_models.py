"""Whole tiny models on every target that can be executed here give the CPU's logits.

To the bit, where the target has a fused multiply-add.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simt"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import test_grid_vision
import test_vision
import tiny_families
import tiny_grid_vision
import tiny_vision
from compiled import Compiled, Logits, Part, build_drawn, convert, drawn_source, step_input, tiny
from conformance import CONFIG, TARGETS
from simt_device import SimtDevice
from test_family_logits import weights

from sterna.base.artifact import Activations, CompileOptions
from sterna.base.dtype import dtype
from sterna.base.errors import ArtifactError, DeviceError, OutOfMemory, RequestError, UsageError
from sterna.base.target import host_target, parse_target
from sterna.checkpoint.mlc import read_mlc_folder
from sterna.compiler import compile_model
from sterna.engine.options import SamplingOptions
from sterna.engine.sampler import History, Wanted, orders, sample_input
from sterna.runtime.executable import Executable
from sterna.runtime.sampling import sample_rows
from sterna.runtime.work_groups import Device, GroupExecutable, load_on

OPTIONS = {"prefill_chunk_size": 48, "max_batch_size": 4, "context_window_size": 256}
SEEING = {
    "llava": (test_vision, tiny_vision.LLAVA),
    "qwen2_5_vl": (test_grid_vision, tiny_grid_vision.QWEN25VL),
}
PAGES = 40
SHAPE = {**tiny.VARIANTS["llama2-gqa"], **CONFIG}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models by scheme, made when first asked for by `model`."""
    return {}


def model(made: dict[str, Path], scheme: str, root: Path) -> Path:
    if scheme not in made:
        made[scheme] = converted(root / scheme, SHAPE, tiny.weights(SHAPE), scheme)
    return made[scheme]


def converted(root: Path, config: dict[str, Any], drawn: tiny.Weights, scheme: str) -> Path:
    return convert(drawn_source(root, config, drawn), root / "converted", scheme)


def on_target(
    folder: Path, name: str, device: Device, root: Path, sizes: dict[str, int] = OPTIONS
) -> GroupExecutable:
    """The model compiled for a target and loaded on a device that runs its kernels."""
    target = parse_target(name)
    library = root / f"model-{name}{target.suffix}"
    compile_model(folder, target, library, options=CompileOptions(**sizes), cached=False)
    tensors = read_mlc_folder(folder).tensors
    return load_on(device, library, tensors, num_pages=PAGES)


def some_steps(executable: Executable) -> list[Logits]:
    """A prompt in two chunks beside another, then both decoded, and a page copied between."""
    prompt, other = [3 + 7 * i % 61 for i in range(37)], [3, 9, 27]
    pages, more = [3, 11, 2, 30], [7, 8]
    size = executable.manifest.kv_cache.page_size
    steps = [
        [Part(prompt[:20], 0, pages)],
        [Part(prompt[20:], 20, pages), Part(other, 0, more)],
        [Part([4], 37, pages), Part([6], 3, more)],
        [Part([8], 38, pages)],
    ]
    found = [executable.step(step_input(parts, size)).copy() for parts in steps]
    executable.copy_page(30, 31)
    executable.write_page(12, executable.read_page(11))
    moved = [Part([8], 38, [3, 12, 2, 31])]
    return [*found, executable.step(step_input(moved, size)).copy()]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("cuda:source", "q4f16_1"),
        ("cuda", "q4f16_1"),
        ("rocm", "q4f16_1"),
        pytest.param("cuda:source", "q3f16_1", marks=pytest.mark.slow),
        pytest.param("cuda:source", "q4f16_0", marks=pytest.mark.slow),
        pytest.param("cuda:source", "q8f16_1z", marks=pytest.mark.slow),
        ("rocm:source", "q4bf16_1"),
        ("metal", "q4f32_1"),
        pytest.param("opencl", "q4f16_1", marks=pytest.mark.slow),
        pytest.param("webgpu", "q4f32_1", marks=pytest.mark.slow),
        pytest.param("webgpu", "q0f16", marks=pytest.mark.slow),
        pytest.param("webgpu", "q4f16_0", marks=pytest.mark.slow),
        pytest.param("webgpu:f16", "q4f16_1", marks=pytest.mark.slow),
        pytest.param("webgpu:barrier-free", "q4f32_1", marks=pytest.mark.slow),
        ("vulkan", "q4f16_1"),
        pytest.param("vulkan", "q4bf16_1", marks=pytest.mark.slow),
        pytest.param("vulkan", "q3f16_1", marks=pytest.mark.slow),
        pytest.param("vulkan", "q8f16_1z", marks=pytest.mark.slow),
        pytest.param("vulkan:f32", "q4f32_1", marks=pytest.mark.slow),
        pytest.param("vulkan:f32", "q0bf16", marks=pytest.mark.slow),
    ],
)
def test_the_cpus_logits(
    name: str, scheme: str, models: dict[str, Path], tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    device = TARGETS[name]()
    root = tmp_path_factory.getbasetemp()
    target = parse_target(name)
    folder = model(models, scheme, root)
    plain = tmp_path / "plain.so"
    options = CompileOptions(**OPTIONS, activations="f32")
    compile_model(folder, parse_target("cpu"), plain, options=options)
    ours = on_target(folder, name, device, tmp_path)
    theirs = Compiled(folder, plain).load(num_pages=PAGES)
    pairs = list(zip(some_steps(ours), some_steps(theirs), strict=True))
    for got, wanted in pairs:
        if target.fma:
            np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
        else:
            # Where a target keeps its cache in f32, the CPU's may be the one that is rounded.
            check_close(got, wanted, theirs.manifest.kv_cache.dtype)
    np.testing.assert_array_equal(pairs[-1][0], pairs[-2][0])
    check_reading(ours, device)
    ours.close()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    "scheme",
    ["q4f32_1", *(pytest.param(s, marks=pytest.mark.slow) for s in ("q3f16_1", "q8f16_1z"))],
)
def test_a_prompt_has_the_bits_of_its_tokens_one_by_one(
    scheme: str, models: dict[str, Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Where kernels of prompts and of single tokens share what they take out of codes."""
    name = "webgpu:barrier-free"
    folder = model(models, scheme, tmp_path_factory.getbasetemp())
    ours = on_target(folder, name, TARGETS[name](), tmp_path)
    prompt, size = [3 + 7 * i % 61 for i in range(21)], ours.manifest.kv_cache.page_size

    def last(chunks: list[int], pages: list[int]) -> Logits:
        ends = np.cumsum(chunks).tolist()
        parts = [
            Part(prompt[end - n : end], end - n, pages) for n, end in zip(chunks, ends, strict=True)
        ]
        return [ours.step(step_input([part], size)).copy() for part in parts][-1]

    whole = last([21], [3, 11])
    for chunks, pages in (([1] * 21, [4, 12]), ([17, 2, 2], [5, 13])):
        np.testing.assert_array_equal(last(chunks, pages).view(np.uint32), whole.view(np.uint32))
    ours.close()


@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("cuda:sm_80", "i16"),
        pytest.param("metal:apple7", "i8", marks=pytest.mark.slow),
        pytest.param("vulkan", "i8", marks=pytest.mark.slow),
    ],
)
def test_activations_as_codes(
    name: str, activations: Activations, models: dict[str, Path], tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Products of integers: the CPU's own way, and matrix units where the target has them."""
    target = parse_target(name)
    device: Device = SimtDevice() if target.unit else TARGETS[name]()
    target = replace(target, architectures=())
    folder = model(models, "q4f16_1", tmp_path_factory.getbasetemp())
    options = CompileOptions(**OPTIONS, activations=activations)
    plain, library = tmp_path / "plain.so", tmp_path / f"model{target.suffix}"
    compile_model(folder, parse_target("cpu"), plain, options=options)
    compile_model(folder, target, library, options=options, cached=False)
    ours = load_on(device, library, read_mlc_folder(folder).tensors, num_pages=PAGES)
    theirs = Compiled(folder, plain).load(num_pages=PAGES)
    for got, wanted in zip(some_steps(ours), some_steps(theirs), strict=True):
        if target.fma:
            np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
        else:
            check_close(got, wanted, ours.manifest.kv_cache.dtype)
    multiplies = [p for k in ours.manifest.kernels for p in k.phases if "tensorize" in k.schedule]
    assert bool(multiplies) == (target.unit is not None)
    ours.close()
    theirs.close()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["deepseek-v3", "gpt-oss", "llama4", "qwen2-moe"])
@pytest.mark.parametrize("name", ["vulkan"])
def test_mixtures_of_experts(name: str, variant: str, tmp_path: Path) -> None:
    """Routing, experts, latents, sinks and chunks: what CONFIG has none of."""
    device = TARGETS[name]()
    config, sizes = tiny_families.VARIANTS[variant], {**OPTIONS, "context_window_size": 128}
    folder = converted(tmp_path, config, weights(variant), "q4f16_1")
    plain = tmp_path / "plain.so"
    options = CompileOptions(**sizes, activations="f32")
    compile_model(folder, parse_target("cpu"), plain, options=options)
    ours = on_target(folder, name, device, tmp_path, sizes)
    theirs = Compiled(folder, plain).load(num_pages=PAGES)
    for got, wanted in zip(some_steps(ours), some_steps(theirs), strict=True):
        if parse_target(name).fma:
            np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
        else:
            check_close(got, wanted, ours.manifest.kv_cache.dtype)
    ours.close()
    theirs.close()


RECURRENT = [("vulkan", "mamba2")] + [
    pytest.param(name, variant, marks=pytest.mark.slow)
    for variant, names in (
        ("mamba2", ("cuda:source", "opencl", "webgpu", "webgpu:barrier-free")),
        ("rwkv7", ("cuda:source", "webgpu", "webgpu:barrier-free")),
        ("granitemoehybrid", ("vulkan", "cuda:source", "webgpu", "webgpu:barrier-free")),
        ("granitemoehybrid-experts", ("cuda:source",)),
        ("qwen3.5", ("cuda:source",)),
        ("qwen3-next", ("vulkan", "cuda:source", "webgpu:barrier-free")),
    )
    for name in names
]


@pytest.mark.parametrize(("name", "variant"), RECURRENT)
def test_recurrent_states(
    name: str, variant: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A prompt in chunks beside another, and both decoded: states go from step to step."""
    device, root = TARGETS[name](), tmp_path_factory.getbasetemp() / variant
    if not root.exists():
        build_drawn(root, tiny_families.VARIANTS[variant], weights(variant), "q0f32", **OPTIONS)
    found = Compiled(root / "converted", root / "converted" / f"model{host_target().suffix}")
    ours, theirs = on_target(found.folder, name, device, tmp_path), found.load(num_pages=PAGES)
    for got, wanted in zip(state_steps(ours), state_steps(theirs), strict=True):
        if parse_target(name).fma:
            np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
        else:
            check_close(got, wanted, "f32")
    ours.close()
    theirs.close()


def state_steps(executable: Executable) -> list[Logits]:
    """As some_steps, with a state for each sequence; then a third takes the first one's place."""
    prompt, other = [3 + 7 * i % 61 for i in range(37)], [3, 9, 27]
    size, pages = executable.manifest.kv_cache.page_size, [3, 0, 5]
    steps = [
        [Part(prompt[:20], 0, pages)],
        [Part(prompt[20:], 20, pages), Part(other, 0, [7])],
        [Part([4], 37, pages), Part([6], 3, [7])],
        [Part(other, 0, pages)],
    ]
    found = [executable.step(step_input(parts, size)).copy() for parts in steps]
    assert found[3][0].tobytes() == found[1][1].tobytes()  # nothing is left of the first
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cuda:source", "llava"),
        ("webgpu:barrier-free", "llava"),
        ("webgpu:barrier-free-subgroups", "llava"),
        ("vulkan", "qwen2_5_vl"),
    ],
)
def test_images(
    name: str, kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What looks at them, and prompts with what it makes."""
    test, config = SEEING[kind]
    device, root = TARGETS[name](), tmp_path_factory.getbasetemp() / kind
    if not root.exists():
        build_drawn(root, config, test.weights(kind), "q0f32", **test.SIZES)
    found = Compiled(root / "converted", root / "converted" / f"model{host_target().suffix}")
    ours = on_target(found.folder, name, device, tmp_path, test.SIZES)
    theirs = found.load(num_pages=PAGES)
    pairs = [*zip(*map(test.seen, (ours, theirs)), strict=True)]
    pairs.append((test.logits(ours, 40), test.logits(theirs, 40)))
    for got, wanted in pairs:
        if parse_target(name).fma:
            np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
        else:
            check_close(got, wanted, "f32")
    ours.close()
    theirs.close()


def check_reading(executable: GroupExecutable, device: Device) -> None:
    """A token is all that is read of a step, drawn or not."""
    read: list[int] = []
    kind, whole = type(device), type(device).read

    def count(self: Any, buffer: Any, out: Any, offset: int = 0) -> None:
        read.append(out.nbytes)
        whole(self, buffer, out, offset)

    def read_for(temperature: float) -> list[int]:
        read.clear()
        executable.run(step_input([Part([8], 38, [3, 11, 2, 30])], 16))
        options = orders(SamplingOptions(temperature=temperature, logit_bias={9: 0.5}))
        wanted = [Wanted(0, options, History([1, 8], 1, 0))]
        given = sample_input(wanted, SHAPE["vocab_size"] - 3, SHAPE["vocab_size"])
        (token,) = executable.sample(given).tolist()
        told = list(read)
        assert [token] == sample_rows(executable.logits(), given).tolist()
        return told

    with mock.patch.object(kind, "read", count):
        assert read_for(0.0) == [4]
        assert read_for(1.0) == [4]


def check_close(got: Logits, wanted: Logits, stored: str) -> None:
    """Logits of a target that rounds otherwise, and the tokens that they choose.

    A difference in the last bit of an f32 may turn the rounding of a 16-bit activation, so the
    bound is two units of what activations are stored in, at the largest logit.
    """
    unit = float(ml_dtypes.finfo(dtype(stored).numpy).eps)
    bound = max(1e-4, 2 * unit * float(np.abs(wanted).max()))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound)
    second, first = np.sort(wanted, axis=-1)[:, -2:].T
    same = got.argmax(-1) == wanted.argmax(-1)
    assert (same | (first - second < 1e-3)).all()


def test_what_a_device_refuses(models: dict[str, Path], tmp_path: Path) -> None:
    folder = model(models, "q4f16_1", tmp_path)
    ours = on_target(folder, "cuda:source", SimtDevice(), tmp_path)
    with pytest.raises(RequestError, match="page 40 is not one of the cache's 40"):
        ours.copy_page(40, 0)
    with pytest.raises(RequestError):
        ours.step(step_input([Part([500], 0, [1])], 16))
    ours.close()
    with pytest.raises(DeviceError, match="was closed"):
        ours.copy_page(1, 0)
    library = tmp_path / "model-cuda:source.sterna"
    tensors = read_mlc_folder(folder).tensors
    with pytest.raises(UsageError, match="a KV cache of 0 pages"):
        load_on(SimtDevice(), library, tensors, num_pages=0)

    class Small(SimtDevice):
        limits = replace(SimtDevice.limits, memory=1000)

    class Narrow(SimtDevice):
        limits = replace(SimtDevice.limits, buffer_bytes=1000)

    class Few(SimtDevice):
        limits = replace(SimtDevice.limits, group_threads=32)

    class Lonely(SimtDevice):
        limits = replace(SimtDevice.limits, lanes=8)

    for device, error, told in (
        (Small, OutOfMemory, "of memory"),
        (Narrow, OutOfMemory, "binds 1000 at most"),
        (Few, DeviceError, "threads in a group, and simt has 32"),
        (Lonely, DeviceError, "subgroup, and simt has 8; compile the model with --target cuda, "),
    ):
        with pytest.raises(error, match=told):
            load_on(device(), library, tensors, num_pages=PAGES)
    whole = library.read_bytes()
    for damaged in (whole[:-1], whole[:-9] + b"x" + whole[-8:], whole + b"x"):
        library.write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load_on(SimtDevice(), library, tensors, num_pages=PAGES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {"kv_dtype": "q8"}),
        ({"hidden_size": 48, "intermediate_size": 80}, {}),  # groups of 32 do not fill the rows
        (
            {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 9},
            {},
        ),
    ],
)
def test_other_caches_rows_and_windows(
    shape: dict[str, object], options: dict[str, Any], tmp_path: Path
) -> None:
    config = SHAPE | shape
    folder = converted(tmp_path, config, tiny.weights(config), "q4f16_1")
    both = []
    tensors = read_mlc_folder(folder).tensors
    asked = CompileOptions(**OPTIONS, activations="f32", **options)
    for name in ("cpu", "cuda:source"):
        target = parse_target(name)
        library = tmp_path / f"other-{name}{target.suffix}"
        compile_model(folder, target, library, options=asked, cached=False)
        if name == "cpu":
            executable: Executable = Compiled(folder, library).load(num_pages=PAGES)
        else:
            executable = load_on(SimtDevice(), library, tensors, num_pages=PAGES)
        both.append(some_steps(executable))
        executable.close()
    for got, wanted in zip(*both, strict=True):
        np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
