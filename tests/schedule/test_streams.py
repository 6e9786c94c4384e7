"""Packed words in several streams: the same bits, and a line of each stream asked for once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from schedule_groups import product_arrays, product_group
from schedule_library import Library, build
from test_quantized_products import kernels, scheme_of

from sterna.base.errors import ScheduleError
from sterna.base.target import Target, host_target, parse_target
from sterna.ir.compute import Group
from sterna.ir.expr import const_value, row_major, wrap
from sterna.ir.loop import For, Prefetch, PrimFunc
from sterna.ir.rewrite import free_vars, substitute, visit
from sterna.ir.simplify import simplify
from sterna.passes.prepack import RowTile
from sterna.quantize.scheme import SCHEMES
from sterna.schedule.apply import apply
from sterna.schedule.choose import RULES, Plan, plan_of, schedule
from sterna.schedule.rules.product import MatmulKnobs, MatvecKnobs
from sterna.schedule.steps import LINE_BYTES, Schedule

CODED = ("q4f16_1", "q8f16_1", "q3f16_1", "q4f16_1z", "q4f16_1 i8")  # x in codes of 16 or 8 bits
FLOATS = ("q4f32_1",)
SHAPES = ((96, 128), (72, 64))  # rows of the weight that fill its tiles, and that do not
ROWS = {2: (1, 2), 32: (8,), 512: (40,)}  # of x, by the bound that the kernel is made for
ONE, TWO, FOUR = (RowTile(32, streams) for streams in (1, 2, 4))
LAYOUTS = (ONE, TWO, FOUR)
LINE = LINE_BYTES // 4  # words


def made(name: str, most: int, shape: tuple[int, int], tile: RowTile) -> dict[str, Group]:
    if name in CODED:
        return kernels(name, most, shape, tile)
    return {"product": product_group("floats", shape, SCHEMES[name], most, tile=tile)}


def title(key: str, name: str, most: int, shape: tuple[int, int], tile: RowTile) -> str:
    return f"{key}_{name.replace(' ', '_')}_{most}_{shape[0]}_{tile.streams}"


def every(target: Target) -> Iterator[tuple[Group, Schedule]]:
    """The kernels in the form and with the steps that the target's table gives them."""
    for case in product((*CODED, *FLOATS), ROWS, SHAPES, (ONE, FOUR)):
        for key, group in made(*case).items():
            if key == "product" or case[-1] == ONE:
                plan = plan_of(group, target)
                form = RULES[plan.rule].form
                formed = group if form is None else form(group)
                yield replace(formed, name=title(key, *case)), schedule(group, plan)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    plans = {group.name: (group, steps) for group, steps in every(host_target())}
    return build(plans, host_target(), tmp_path_factory.mktemp("streams"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("most", ROWS)
@pytest.mark.parametrize("name", [*CODED, *FLOATS])
def test_the_bits_are_those_of_one_stream(
    library: Library, name: str, most: int, shape: tuple[int, int]
) -> None:
    for count in ROWS[most]:
        one, four = (product_arrays(shape, scheme_of(name), count, t) for t in (ONE, FOUR))
        words = one["layer_q_weight"], four["layer_q_weight"]
        assert words[1].shape[0] == 4
        assert words[0].size == words[1].size
        assert not np.array_equal(words[0].reshape(-1), words[1].reshape(-1))
        if name in CODED:
            codes = title("codes", name, most, shape, ONE)
            coded = library.run(codes, one, n=count).values()
            inputs = dict(zip(("x_codes", "x_scales", "x_sums"), coded, strict=True))
            one, four = one | inputs, four | inputs
        found = []
        for tile, arrays in ((ONE, one), (FOUR, four)):
            kernel = title("product", name, most, shape, tile)
            (out,) = library.run(kernel, arrays, n=count).values()
            found.append(out)
        assert np.isfinite(found[0]).all()
        assert found[0].any()
        assert np.array_equal(found[0].view(np.uint32), found[1].view(np.uint32))


def test_rules_are_those_that_are_meant() -> None:
    """Few rows, some, and many: in pairs where the hardware has them."""
    target = parse_target("cpu:x86-64-v3-linux")
    rules = {
        (name, most): plan_of(made(name, most, SHAPES[0], FOUR)["product"], target).rule
        for name in ("q4f16_1", "q4f16_1 i8", "q4f32_1")
        for most in ROWS
    }
    plain = {"matvec", "skinny_matmul", "matmul"}
    assert set(rules.values()) == plain | {f"{rule}_pairs" for rule in plain}
    assert {name for (name, _), rule in rules.items() if rule.endswith("_pairs")} == {"q4f16_1 i8"}


def test_blocks_end_where_tiles_do_however_many_streams() -> None:
    group = made("q4f16_1", 2, SHAPES[0], FOUR)["product"]
    with pytest.raises(ScheduleError, match="64 rows do not divide tiles of 32"):
        schedule(group, Plan("matvec", MatvecKnobs(8, rows=64, least_rows=64)))


def asked(func: PrimFunc) -> list[tuple[int, ...]]:
    """The lines that each turn of the loops around prefetches asks for, by their numbers."""
    loops = {n.var: n.extent for n in visit(func.body) if isinstance(n, For)}
    places = [n.place for n in visit(func.body) if isinstance(n, Prefetch)]
    flat = [row_major(place.buffer.shape, place.index) // LINE for place in places]
    around = sorted({v for at in flat for v in free_vars(at)}, key=lambda v: v.name)
    turns = product(*(range(int(const_value(loops[v]) or 0)) for v in around))
    values = [{v: wrap(i) for v, i in zip(around, turn, strict=True)} for turn in turns]
    return [
        tuple(int(const_value(simplify(substitute(at, value))) or 0) for at in flat)
        for value in values
    ]


@pytest.mark.parametrize("tile", LAYOUTS)
@pytest.mark.parametrize("rule", ["matvec", "skinny_matmul"])
@pytest.mark.parametrize("words", [2, 4])
def test_each_line_of_each_stream_is_asked_for_once(rule: str, words: int, tile: RowTile) -> None:
    """Turns of 2 or 4 words take whole lines of 32 rows, in streams of 8, 16 or 32 rows."""
    most, shape = {"matvec": 2, "skinny_matmul": 32}[rule], (128, 256)
    group = kernels("q4f16_1", most, shape, tile)["product"]
    unroll = 4 * words  # pairs of codes
    knobs = {
        "matvec": MatvecKnobs(8, rows=32, least_rows=32, unroll=unroll, ahead=2048),
        "skinny_matmul": MatmulKnobs(8, tokens=4, vectors=4, items=1, unroll=unroll, ahead=2048),
    }[rule]
    lines = asked(apply(group, schedule(group, Plan(rule, knobs))))
    assert all(len(turn) == len(set(turn)) == 32 * words // LINE for turn in lines)
    times = Counter(line for turn in lines for line in turn)
    assert set(times.values()) == {1}
    assert len(times) == 128 * (256 // 8) // LINE


def test_a_turn_of_half_lines_asks_for_that_of_each_stream() -> None:
    group = kernels("q4f16_1", 2, (128, 256), FOUR)["product"]
    knobs = MatvecKnobs(8, rows=32, least_rows=32, unroll=4, ahead=2048)
    lines = asked(apply(group, schedule(group, Plan("matvec", knobs))))
    assert all(len(turn) == len(set(turn)) == 4 for turn in lines)
    stream = 4 * (256 // 8) * 8 // LINE
    assert [line // stream for line in lines[0]] == [0, 1, 2, 3]
    assert set(Counter(line for turn in lines for line in turn).values()) == {2}
