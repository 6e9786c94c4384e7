"""What kernels move, counted by the interpreter: weights once, the cache once, results once.

A test of schedules, not of a clock: a decode step is as fast as memory only if no work item
fetches what another has fetched already.
"""

import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "schedule"))

from conformance import CHAT
from conformance import CONFIG as USUAL
from kernel_arrays import CACHED, PAGE_SIZE, arguments
from schedule_groups import product_group
from traffic import Traffic, traffic_of

from sterna.base.artifact import CompileOptions
from sterna.base.target import Target, parse_target
from sterna.checkpoint.model_folder import ModelFolder
from sterna.compiler import DECODE_TOKENS, Source, compile_source
from sterna.program import Compiled
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.choose import plan_of, planned

CONFIG = USUAL | {
    "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
    "vocab_size": 64,
}  # fmt: skip
HEAD_DIM = 32
PRODUCTS = ("quantized_matmul", "matmul")


@dataclass(frozen=True)
class Decode:
    """The kernels of one decode step for a target."""

    target: Target
    kernels: dict[str, Compiled]
    batch: dict[str, Compiled]  # of a verify step
    prompt: dict[str, Compiled]  # of a prefill step

    def product(self, rows: int) -> Compiled:
        """The narrowest product of a step of so many sequences."""
        kernels = self.kernels if rows <= DECODE_TOKENS else self.batch
        found = (k for k in kernels.values() if k.op in PRODUCTS)
        return min(found, key=lambda k: str(k.func.params[-1].shape[-1]))

    def of(self, *ops: str) -> list[Compiled]:
        return [k for k in self.kernels.values() if k.op in ops]


VECTORS, GROUPS, ALONE = "cpu:x86-64-v3", "vulkan", "webgpu:barrier-free"


@pytest.fixture(scope="module", params=[VECTORS, GROUPS, ALONE])
def decode(request: pytest.FixtureRequest) -> Decode:
    target = parse_target(request.param)
    folder = ModelFolder(Path(), dict(CHAT), dict(CONFIG), "llama", "q4f16_1", "q4f16_1", {})
    source = compile_source(folder, target, CompileOptions())
    return Decode(target, *(_launched(source, name) for name in ("decode", "verify", "prefill")))


def _launched(source: Source, name: str) -> dict[str, Compiled]:
    """The kernels of an entry point."""
    step = next(p.entry for p in source.entries if p.entry.name == name)
    launched = {launch.kernel for s in step.steps for launch in getattr(s, "body", (s,))}
    return {k: v for k, v in source.table.kernels.items() if k in launched}


def counted(kernel: Compiled, tokens: int) -> tuple[Traffic, dict[str, int]]:
    """What a kernel moves, and the bytes of each parameter."""
    arrays, dims = arguments(kernel.func, tokens, single=True)
    sizes = {name: array.nbytes for name, array in arrays.items()}
    return traffic_of(kernel.func, arrays, dims), sizes


@pytest.mark.parametrize(
    ("decode", "rows"),
    list(product((VECTORS, GROUPS, ALONE), (1, 2, 3, 5, 8))),
    indirect=["decode"],
)
def test_a_step_reads_each_byte_of_a_weight_once(decode: Decode, rows: int) -> None:
    """One sequence, or several that decode together: no two work items read the same weights."""
    kernel = decode.product(rows)
    traffic, sizes = counted(kernel, rows)
    weights = [n for n in sizes if n.endswith(("_q_weight", "_q_scale"))]
    assert len(weights) == 2
    for name in weights:
        assert traffic.read[name] == sizes[name], f"{kernel.func.name}: {name}"
    (written,) = {+traffic.written[n] for n in sizes if traffic.written[n]}
    assert written == sizes[kernel.func.params[-1].name]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("scheme", ["q4f16_1", "q8f16_1", "q0f16"])
def test_a_group_loads_each_word_once(scheme: str, rows: int) -> None:
    """No thread counts on a cache for the second row of x."""
    group = product_group("product", (64, 512), SCHEMES[scheme], DECODE_TOKENS, epilogue=False)
    _, func = planned(group, plan_of(group, parse_target(GROUPS)))
    arrays, dims = arguments(func, rows, single=True)
    traffic = traffic_of(func, arrays, dims)
    (words,) = (name for name in arrays if name.endswith("weight"))
    assert traffic.asked[words] == traffic.read[words] == arrays[words].nbytes


@pytest.mark.parametrize(
    ("scheme", "rows"),
    [*product(("q4f16_1",), (1, 2, 3, 5, 8)), ("q8f16_1", 2)],
)
def test_a_thread_that_works_alone_passes_over_its_weights_once(scheme: str, rows: int) -> None:
    """One pass serves up to eight rows of x, and no cache does it.

    The weight of a thread is far larger than what it keeps near.
    """
    most = DECODE_TOKENS if rows <= DECODE_TOKENS else 8
    group = product_group("product", (64, 1024), SCHEMES[scheme], most, epilogue=False)
    _, func = planned(group, plan_of(group, parse_target("opencl:mali")))
    arrays, dims = arguments(func, rows, single=True)
    traffic = traffic_of(func, arrays, dims)
    for name in (n for n in arrays if n.startswith("layer_")):
        assert traffic.fetched[name] == traffic.read[name] == arrays[name].nbytes


@pytest.mark.parametrize("decode", [VECTORS, GROUPS], indirect=True)
def test_attention_reads_the_cache_once(decode: Decode) -> None:
    """Keys and values of every cached token, for all query heads together.

    Threads that work alone have nothing but the device's cache to share them through.
    """
    (kernel,) = decode.of("attention")
    traffic, sizes = counted(kernel, 2)
    seen = [CACHED + 1, CACHED + 2]  # of each sequence, with its own token
    token = 2 * HEAD_DIM * 2  # keys and values in f16
    cache = max(sizes, key=sizes.__getitem__)
    whole = sum(-(-tokens // PAGE_SIZE) * PAGE_SIZE for tokens in seen) * token
    assert sum(seen) * token <= traffic.read[cache] <= whole
    if decode.target.group_threads:
        assert traffic.read[cache] == sum(seen) * token
    assert traffic.written[cache] == 0


@pytest.mark.parametrize("decode", [GROUPS], indirect=True)
def test_attention_of_a_prompt_reads_the_cache_once_for_four_queries(decode: Decode) -> None:
    (kernel,) = (k for k in decode.prompt.values() if k.op == "attention")
    arrays, dims = arguments(kernel.func, 65, single=False)
    cache = max(arrays, key=lambda name: arrays[name].nbytes)
    read = traffic_of(kernel.func, arrays, dims).read[cache] // (2 * HEAD_DIM * 2)  # tokens
    seen = arrays["positions"] + 1  # by each query
    ends = [
        min(first + 4, start + size) - 1
        for start, size in zip(arrays["tile_start"], arrays["tile_size"], strict=True)
        for first in range(start, start + size, 4)
    ]
    assert read == seen[ends].sum()
    assert read < seen.sum() / 3


def test_a_norm_reads_a_row_once(decode: Decode) -> None:
    kernel = decode.of("rms_norm")[0]
    traffic, sizes = counted(kernel, 3)
    rows = [n for n, size in sizes.items() if size == 3 * CONFIG["hidden_size"] * 4]
    assert sum(traffic.read[n] for n in rows) == sizes[rows[0]]
    assert sum(traffic.written[n] for n in rows) == sizes[rows[0]]


def test_the_count_finds_what_is_read_again(decode: Decode) -> None:
    """Each row is a work item of its own, which fetches the norm's weight anew."""
    kernel = decode.of("rms_norm")[0]
    traffic, sizes = counted(kernel, 3)
    weight = next(n for n in sizes if n.endswith("layernorm_weight"))
    assert traffic.read[weight] == 3 * sizes[weight]
