"""Cost formulas are those of a count by hand."""

import pytest
from test_regroup import ROWS, product

from sterna.base.dtype import F16, F32, I32
from sterna.ir.expr import Buffer, Var
from sterna.ir.graph import Function, IRModule
from sterna.nn.trace import Trace
from sterna.passes.cleanup import cleanup
from sterna.passes.cost import Cost, attention_cost, group_cost, moving_cost
from sterna.passes.fuse import fuse
from sterna.passes.lower import lower
from sterna.passes.prepack import RowTile
from sterna.passes.quantize_activations import quantize_activations
from sterna.quantize.pack import packed_spec
from sterna.quantize.scheme import scheme

N = 5


def at(cost: Cost, **dims: int) -> tuple[int, int]:
    """(operations, bytes) where the dims have those sizes."""
    return tuple(int(eval(text, {}, dims)) for text in (cost.flops, cost.bytes))


def of(function: Function, tiles: dict[str, RowTile] | None = None) -> tuple[int, int]:
    return at(group_cost(lower(function, tiles or {}).group), n=N)


def test_a_product_takes_two_operations_a_weight_and_row() -> None:
    flops, moved = of(product(scheme("q0f16"), 64))
    assert flops == 2 * N * 64 * ROWS
    assert moved == 4 * N * 64 + 2 * 64 * ROWS + 4 * N * ROWS


def test_packed_weights_are_unpacked_once_and_scaled_once_a_group() -> None:
    flops, moved = of(product(scheme("q4f16_1"), 64))
    groups = 64 // 32
    assert flops == 2 * N * 64 * ROWS + 64 * ROWS + 2 * N * groups * ROWS
    assert moved == 4 * N * 64 + ROWS * (64 // 2 + 2 * groups) + 4 * N * ROWS


@pytest.mark.parametrize("bits", [16, 8])
def test_products_of_codes_are_counted_like_those_of_floats(bits: int) -> None:
    """And besides, once a group of k, two scales are multiplied with the sum and it is added."""
    function = product(scheme("q4f16_1"), 64)
    whole = IRModule({function.name: function}, function.name, (function.params[0].shape[0],))
    module = fuse(cleanup(quantize_activations(whole, bits)))
    _, last = (f for f in module.functions.values() if f.primitive)
    flops, _ = of(last)
    assert flops == 2 * N * 64 * ROWS + 3 * N * (64 // 32) * ROWS


@pytest.mark.parametrize("name", ["q4f16_1", "q4f16_1z", "q8f16_1", "q3f16_1", "q4f16_0"])
def test_weights_move_once(name: str) -> None:
    spec = scheme(name)
    _, moved = of(product(spec, 256))
    stored = sum(
        shape[0] * shape[1] * dtype.bytes
        for shape, dtype in packed_spec((ROWS, 256), spec).values()
    )
    assert moved == stored + 4 * N * 256 + 4 * N * ROWS


@pytest.mark.parametrize("tile", [None, RowTile(64), RowTile(64, 4)])
@pytest.mark.parametrize("name", ["q0f16", "q4f16_1", "q4f16_0"])
def test_of_a_gathered_table_only_its_rows_move(name: str, tile: RowTile | None) -> None:
    spec, shape = scheme(name), (512, 256)
    trace = Trace("embed")
    tokens = trace.param("tokens", (Var("n", I32, 1, 8),), I32)
    parts = [trace.weight(f"e.{k}", s, d) for k, (s, d) in packed_spec(shape, spec).items()]
    table = parts[0]
    if spec.is_quantized:
        table = trace.emit(
            "dequantize", *parts, bits=spec.bits, group=spec.group, bias=spec.bias,
            layout=spec.layout, packing=spec.packing, rows=512, depth=256,
        )  # fmt: skip
    tiles = dict.fromkeys(trace.weights, tile) if tile and spec.layout == "NK" else {}
    function = trace.function(trace.emit("take", table, tokens))
    _, moved = of(function, tiles)
    stored = sum(s[0] * s[1] * d.bytes for s, d in packed_spec(shape, spec).values())
    made = 256 * function.results[0].dtype.bytes
    assert moved == N * (4 + stored // 512 + made)


def test_attention_reads_the_cache_once_for_a_sequence() -> None:
    trace = Trace("attend")
    n = Var("n", I32, 1, 8)
    q = trace.param("q", (n, 128), F32)
    function = trace.function(trace.emit("silu", q))
    cache = Buffer("cache", F16, (Var("pages", I32, 1), 3, 2, 2, 256))
    flops, moved = at(attention_cost(function, 8, 16, cache), n=6, b=2, context=100)
    seen = 101 + 102 + 103  # by the queries of a sequence
    assert flops == 2 * 2 * 2 * seen * 8 * 16
    assert moved == (2 * 100 + 6) * 2 * 2 * 16 * 2 + 2 * 4 * 6 * 128


def test_moving_counts_every_token_twice() -> None:
    trace = Trace("move")
    x = trace.param("x", (Var("n", I32, 1, 8), 128), F32)
    assert at(moving_cost(trace.function(trace.emit("silu", x))), n=N) == (0, 2 * 4 * N * 128)
