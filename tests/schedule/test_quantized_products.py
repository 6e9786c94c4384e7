"""Products of codes: exact within a group, the same bits from every rule, near the real product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_groups import TILES, Array, layouts, product_arrays, rows, weight
from schedule_library import Library, build

from sterna.base.dtype import F32
from sterna.base.errors import InvalidIR, ScheduleError
from sterna.base.target import host_target, parse_target
from sterna.ir.compute import Group
from sterna.ir.evaluate import evaluate_group, evaluate_primfunc
from sterna.ir.expr import INTRINSICS, Intrin, wrap
from sterna.ir.graph import IRModule, TensorType
from sterna.ir.loop import For, ForKind, Prefetch
from sterna.ir.rewrite import loads, visit
from sterna.nn.trace import Trace
from sterna.ops import op
from sterna.passes.cleanup import cleanup
from sterna.passes.fuse import fuse
from sterna.passes.lower import lower
from sterna.passes.prepack import RowTile
from sterna.passes.quantize_activations import quantize_activations
from sterna.quantize.pack import dequantize, quantize
from sterna.quantize.scheme import SCHEMES, Scheme
from sterna.schedule.apply import apply
from sterna.schedule.choose import RULES, Plan, choose, plan_of, schedule, table
from sterna.schedule.pairs import in_pairs
from sterna.schedule.rules.product import MatmulKnobs, MatvecKnobs
from sterna.schedule.signed import signed
from sterna.schedule.steps import Ahead, Split

BOUNDS = (2, 32, 512)  # upper bounds of the rows, one for each rule
ROWS = (1, 2, 5, 33)
SHAPE = (80, 128)
# A scheme, with 16-bit activations unless "i8" is added.
WIDE = tuple(n for n, s in SCHEMES.items() if s.is_quantized and s.compute.bits == 16)
NARROW = tuple(f"{n} i8" for n in WIDE if SCHEMES[n].bits == 4 and SCHEMES[n].packing == "word")
ERRORS = {16: 4e-5, 8: 1e-2}  # of a product's norm


def scheme_of(name: str) -> Scheme:
    return SCHEMES[name.removesuffix(" i8")]


def bits_of(name: str) -> int:
    return 8 if name.endswith(" i8") else 16


def kernels(
    name: str, most: int, shape: tuple[int, int] = SHAPE, tile: RowTile = TILES
) -> dict[str, Group]:
    """The kernel that quantizes x and the one that multiplies, as the passes make them."""
    scheme = scheme_of(name)
    trace, n = Trace(f"{name.replace(' ', '_')}_{most}"), rows(most)
    x = trace.param("x", (n, shape[1]), F32)
    y = trace.emit("matmul", x, weight(trace, shape, scheme))
    function = trace.function(trace.param("r", (n, shape[0]), F32) + y)
    module = fuse(
        cleanup(
            quantize_activations(
                IRModule({function.name: function}, function.name, (n,)), bits_of(name)
            )
        )
    )
    tiles = layouts(trace, scheme, tile)
    first, second = (lower(f, tiles).group for f in module.functions.values() if f.primitive)
    return {"codes": first, "product": second}


def gated(most: int, near: bool) -> list[Group]:
    """What makes codes of silu(x) * u: one kernel where rows are kept near, else two."""
    trace, n = Trace(f"gated_{near}_{most}"), rows(most)
    x, u = (trace.param(name, (n, SHAPE[1]), F32) for name in "xu")
    y = trace.emit("multiply", trace.emit("silu", x), u)
    y = trace.emit("matmul", y, weight(trace, SHAPE, scheme_of("q4f16_1")))
    function = trace.function(y)
    module = IRModule({function.name: function}, function.name, (n,))
    module = fuse(cleanup(quantize_activations(module)), near_rows=near)
    *made, _ = (f for f in module.functions.values() if f.primitive)
    return [lower(f, {}).group for f in made]


def groups() -> Iterator[Group]:
    for name in (*WIDE, *NARROW):
        for most in BOUNDS:
            yield from kernels(name, most).values()
    for most in BOUNDS[::2]:
        yield from (*gated(most, True), *gated(most, False))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    made = {g.name: (g, choose(g, host_target())) for g in groups()}
    return build(made, host_target(), tmp_path_factory.mktemp("codes"))


def run(library: Library, name: str, most: int, arrays: dict[str, Array], count: int) -> Array:
    both = kernels(name, most)
    coded = library.run(both["codes"].name, arrays, n=count)
    inputs = dict(zip(("x_codes", "x_scales", "x_sums"), coded.values(), strict=True))
    (out,) = library.run(both["product"].name, arrays | inputs, n=count).values()
    return out


@pytest.mark.parametrize("name", [*WIDE, *NARROW])
def test_every_rule_gives_the_same_bits_near_the_real_product(library: Library, name: str) -> None:
    arrays = product_arrays(SHAPE, scheme_of(name), max(ROWS))
    wide = run(library, name, BOUNDS[-1], arrays, max(ROWS))
    full = np.random.default_rng(SHAPE[0] * 1000 + SHAPE[1]).standard_normal(SHAPE)
    packed = quantize(full.astype(np.float32), scheme_of(name))
    exact = arrays["x"].astype(np.float64) @ dequantize(packed, scheme_of(name), SHAPE).T
    gap = np.linalg.norm(wide - arrays["r"] - exact) / np.linalg.norm(exact)
    assert ERRORS[bits_of(name)] / 10 < gap < ERRORS[bits_of(name)]
    for count in ROWS:
        for most in BOUNDS:
            part = run(library, name, most, arrays, count)
            assert np.array_equal(part.view(np.uint32), wide[:count].view(np.uint32)), (count, most)


@pytest.mark.parametrize("most", BOUNDS[::2])
def test_what_becomes_codes_on_the_way_has_the_same_codes(library: Library, most: int) -> None:
    rng = np.random.default_rng(most)
    arrays = {name: rng.standard_normal((2, SHAPE[1]), np.float32) for name in "xu"}
    (near,), (first, second) = gated(most, True), gated(most, False)
    (stored,) = library.run(first.name, arrays, n=2).values()
    (x,) = (p.name for p in second.inputs)
    found = library.run(near.name, arrays, n=2).values()
    wanted = library.run(second.name, {x: stored}, n=2).values()
    for a, b in zip(found, wanted, strict=True):
        assert np.array_equal(a.view(np.uint32), b.view(np.uint32))
    # Computed once: what is read twice is a stage of the kernel.
    assert next(c.name.partition(".")[2] for c in near.computes) == "x"


@pytest.mark.parametrize("name", ["q4f16_1", "q3f16_1", "q8f16_1z", "q4f16_1 i8", "q4f16_1z i8"])
def test_compiled_as_interpreted(library: Library, name: str) -> None:
    arrays = product_arrays(SHAPE, scheme_of(name), 2)
    for group in kernels(name, 2).values():
        func = library.funcs[group.name]
        found = library.run(func.name, arrays, n=2)
        held = {p.name: arrays[p.name] for p in func.params if p.name in arrays}
        outs = {p.name: np.zeros_like(found[p.name]) for p in group.outputs}
        evaluate_primfunc(func, held | outs, dict.fromkeys(func.dims, 2))
        for key, out in outs.items():
            assert np.array_equal(out.view(np.uint32), found[key].view(np.uint32)), key
        arrays |= dict(zip(("x_codes", "x_scales", "x_sums"), found.values(), strict=False))


def test_wide_tiles_give_the_bits_of_narrow_ones(tmp_path: Path) -> None:
    """As for weights with many rows: four registers of columns, rows of x that fill no tile."""
    name, shape, count = "q4f16_1", (128, 64), 11
    arrays = product_arrays(shape, scheme_of(name), count)
    lanes, made, outs = host_target().lanes(), {}, []
    for most, rule, tokens in ((2, "", 1), (32, "skinny_matmul", 8), (512, "matmul", 6)):
        both = kernels(name, most, shape)
        tile = MatmulKnobs(lanes, tokens=tokens, vectors=4, items=1, part=4)
        steps = schedule(both["product"], Plan(rule, tile)) if rule else None
        for group in both.values():
            chosen = steps if steps and group is both["product"] else choose(group, host_target())
            made[group.name] = (group, chosen)
        if steps:
            assert next(s.factor for s in steps if isinstance(s, Split)) == 4 * lanes
    library = build(made, host_target(), tmp_path)
    for most in BOUNDS:
        both = kernels(name, most, shape)
        coded = library.run(both["codes"].name, arrays, n=count)
        inputs = dict(zip(("x_codes", "x_scales", "x_sums"), coded.values(), strict=True))
        (out,) = library.run(both["product"].name, arrays | inputs, n=count).values()
        outs.append(out.view(np.uint32))
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])


def test_shallow_panels_and_signed_codes_give_the_bits_of_plain_ones(tmp_path: Path) -> None:
    """Panels of 2 of 6 groups, for 12 rows at a time of 29; a bias taken from the weights."""
    name, shape, count = "q4f16_1", (64, 192), 29
    arrays, made = product_arrays(shape, scheme_of(name), count), {}
    both, funcs = kernels(name, 32, shape), {}
    lanes = host_target().lanes()
    plans = {
        "plain": Plan("skinny_matmul", MatmulKnobs(lanes)),
        "panel": Plan("matmul", MatmulKnobs(lanes)),
        "shallow": Plan("matmul", MatmulKnobs(lanes, tokens=3, depth=40, rows=12)),
    }
    made[both["codes"].name] = (both["codes"], choose(both["codes"], host_target()))
    for title, plan in plans.items():
        form = RULES[plan.rule].form
        group = both["product"] if form is None else form(both["product"])
        funcs[title] = replace(group, name=f"{group.name}_{title}")
        made[funcs[title].name] = (funcs[title], schedule(both["product"], plan))
        read = {load.buffer.name for c in group.computes for load in loads(c.body)}
        corrected = "x_sums" in read
        assert corrected == (title == "plain")
    blocks = [s.factor for s in made[funcs["shallow"].name][1] if isinstance(s, Split)]
    assert {12, 3, 2} <= set(blocks)
    library = build(made, host_target(), tmp_path)
    coded = library.run(both["codes"].name, arrays, n=count)
    inputs = arrays | dict(zip(("x_codes", "x_scales", "x_sums"), coded.values(), strict=True))
    outs = {}
    for title, group in funcs.items():
        (out,) = library.run(group.name, inputs, n=count).values()
        outs[title] = out.view(np.uint32)
    assert np.array_equal(outs["panel"], outs["plain"])
    assert np.array_equal(outs["shallow"], outs["plain"])


@pytest.mark.parametrize("largest", [False, True])
def test_sums_in_pairs_of_16_bits_are_those_in_32(largest: bool, tmp_path: Path) -> None:
    """Also of the largest codes of both, where no sum has room to spare."""
    name, shape, count = "q4f16_1 i8", (64, 192), 29
    arrays = product_arrays(shape, scheme_of(name), count)
    if largest:
        arrays["x"] = np.where(np.arange(shape[1]) % 64 < 32, 1, -1) * np.ones_like(arrays["x"])
        arrays["layer_q_weight"] = np.full_like(arrays["layer_q_weight"], 0xFFFF_FFFF)
    both, lanes = kernels(name, 32, shape), host_target().lanes()
    made = {both["codes"].name: (both["codes"], choose(both["codes"], host_target()))}
    plans = [
        Plan(f"{rule}{ending}", knobs)
        for ending in ("", "_pairs")
        for rule, knobs in (
            ("matvec", MatvecKnobs(lanes)),
            ("skinny_matmul", MatmulKnobs(lanes, tokens=3)),
            ("matmul", MatmulKnobs(lanes, tokens=3, rows=12)),
            ("matmul", MatmulKnobs(lanes, tokens=3, depth=40, rows=12)),
        )
    ]
    names = []
    for i, plan in enumerate(plans):
        form = RULES[plan.rule].form or (lambda group: group)
        group = replace(form(both["product"]), name=f"product_{i}")
        used = {n.name for c in group.computes for n in visit(c.body) if isinstance(n, Intrin)}
        assert ("pair4" in used) == plan.rule.endswith("_pairs")
        made[group.name] = (group, schedule(both["product"], plan))
        names.append(group.name)
    assert len(distinct(build(made, host_target(), tmp_path), both, names, arrays, count)) == 1


def distinct(
    library: Library, both: dict[str, Group], names: list[str], arrays: dict[str, Array], count: int
) -> set[bytes]:
    """The different results of kernels that multiply codes of the same x."""
    coded = library.run(both["codes"].name, arrays, n=count)
    inputs = arrays | dict(zip(("x_codes", "x_scales", "x_sums"), coded.values(), strict=True))
    return {next(iter(library.run(n, inputs, n=count).values())).tobytes() for n in names}


def test_tiles_of_bytes_have_the_bits_of_words(tmp_path: Path) -> None:
    """Two rows at once: on other hardware than what has it, it is what the operation means."""
    name, shape, count = "q4f16_1 i8", (64, 192), 29
    arrays = product_arrays(shape, scheme_of(name), count)
    both = kernels(name, 32, shape)
    plain = MatmulKnobs(4, tokens=4)
    made = {both["codes"].name: (both["codes"], choose(both["codes"], host_target()))}
    names = []
    for rule in ("skinny_matmul", "matmul"):
        for ending, knobs in (
            ("", plain),
            ("_tiles", plain),
            ("_tiles", replace(plain, part=2, depth=64, unroll=8)),
        ):
            group = replace(both["product"], name=f"product_{len(names)}")
            steps = schedule(both["product"], Plan(f"{rule}{ending}", knobs))
            kinds = {n.kind for n in visit(apply(group, steps).body) if isinstance(n, For)}
            assert (ForKind.MATRIX in kinds) == (ending == "_tiles")
            made[group.name] = (group, steps)
            names.append(group.name)
    assert len(distinct(build(made, host_target(), tmp_path), both, names, arrays, count)) == 1


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("q4f16_1 i8", {"tokens": 3}),
        ("q4f16_1 i8", {"tokens": 2, "part": 1}),
        ("q4f16_1 i8", {"tokens": 6, "part": 4}),
        ("q4f16_1", {}),
    ],
)
def test_what_has_no_tiles_of_bytes_is_refused(name: str, knobs: dict[str, int]) -> None:
    group = kernels(name, 32)["product"]
    plan = Plan("skinny_matmul_tiles", replace(MatmulKnobs(4, tokens=4), **knobs))
    with pytest.raises(ScheduleError, match="no tiles of two rows of bytes"):
        schedule(group, plan)


def test_only_products_of_bytes_are_made_in_tiles() -> None:
    target = parse_target("cpu:aarch64-i8mm-linux")
    rules = {
        (name, most): plan_of(kernels(name, most)["product"], target).rule
        for name in ("q4f16_1 i8", "q4f16_1")
        for most in BOUNDS
    }
    assert {key: rule for key, rule in rules.items() if rule.endswith("_tiles")} == {
        ("q4f16_1 i8", 32): "skinny_matmul_tiles",
        ("q4f16_1 i8", 512): "matmul_tiles",
    }
    group = kernels("q4f16_1 i8", 32)["product"]
    assert plan_of(group, parse_target("cpu:aarch64-dot-linux")).rule == "skinny_matmul"


def test_bytes_have_a_tile_of_their_own_where_the_table_has_one() -> None:
    for spec in ("cpu:x86-64-v3", "cpu:x86-64-v4-vnni"):
        target = parse_target(spec)
        knobs = table(target.table)[target.lanes()]
        plans = [
            plan_of(kernels(name, 512)["product"], target) for name in ("q4f16_1 i8", "q4f16_1")
        ]
        assert plans[0].knobs == (knobs.bytes or knobs.pairs)
        assert plans[1].knobs == knobs.pairs
        assert (plans[0].knobs == plans[1].knobs) == (knobs.bytes is None)


def test_sums_that_may_not_fit_16_bits_are_left_in_32() -> None:
    for name in ("q4f16_0 i8", "q4f16_1"):  # 128 codes of 4 bits in a sum; codes of 16 bits
        group = kernels(name, 512)["product"]
        assert in_pairs(group) is group


@pytest.mark.parametrize(("most", "rule"), [(1, "matvec"), (8, "skinny_matmul"), (512, "matmul")])
def test_only_hardware_that_adds_bytes_in_pairs_sums_so(most: int, rule: str) -> None:
    group = kernels("q4f16_1 i8", most)["product"]
    levels = ("x86-64-v3", "x86-64-v3-vnni", "x86-64-v4-vnni", "aarch64-dot")
    rules = {level: plan_of(group, parse_target(f"cpu:{level}-linux")).rule for level in levels}
    assert rules.pop("x86-64-v3") == f"{rule}_pairs"
    assert set(rules.values()) == {rule}


@settings(derandomize=True, max_examples=60, deadline=None)
@given(*(st.lists(st.integers(*ends), min_size=4, max_size=4)
         for ends in ((-128, 127), (0, 15), (-9000, 9000))))  # fmt: skip
def test_pair4_adds_what_dot4_adds(signed: list[int], codes: list[int], start: list[int]) -> None:
    a, b, c = (
        np.array([sum((v & mask) << bits * i for i, v in enumerate(part))], np.uint32).view(
            np.int32
        )
        for part, bits, mask in ((signed, 8, 255), (codes, 8, 255), (start[:2], 16, 65535))
    )
    pairs, ones = INTRINSICS["pair4_add"].numpy(a, b, c), np.full(1, 0x0001_0001, np.int32)
    both = INTRINSICS["dot2"].numpy(pairs, ones)
    assert both == INTRINSICS["dot4"].numpy(a, b) + start[0] + start[1]


def test_codes_of_eight_bits_and_zero_points_keep_their_correction() -> None:
    for name in ("q4f16_1 i8", "q4f16_1z", "q3f16_1"):
        group = kernels(name, 512)["product"]
        assert signed(group) is group


def test_codes_keep_what_they_can(library: Library) -> None:
    """A code is x / scale to the nearest integer; sums are exact; a group of zeros is zeros."""
    group = kernels("q4f16_1", 2)["codes"]
    x = np.random.default_rng(5).standard_normal((2, SHAPE[1])).astype(np.float32)
    x[0, :32] = 0
    x[1, 32:64] *= 1e30
    x[1, 64] = -1e-3
    pairs, scales, sums = library.run(group.name, {"x": x}, n=2).values()
    low, high = (pairs & 0xFFFF).astype(np.int16), (pairs >> 16).astype(np.int16)
    codes = np.concatenate([low, high], axis=-1).reshape(2, -1)
    by_group = codes.reshape(2, -1, 32).astype(np.int64)
    assert np.array_equal(by_group.sum(-1), sums)
    assert np.abs(by_group).max(-1)[x.reshape(2, -1, 32).any(-1)].tolist() == [32767] * 7
    assert not by_group[0, 0].any()
    back = by_group * scales[..., None].astype(np.float64)
    gap = np.abs(back - x.reshape(2, -1, 32)).max(-1)
    assert (gap <= 0.51 * scales).all()


@pytest.mark.parametrize("name", ["q4f16_1", "q8f16_1", "q4f16_0", "q4f16_1 i8"])
def test_the_largest_codes_do_not_overflow(library: Library, name: str) -> None:
    arrays = product_arrays(SHAPE, scheme_of(name), 1)
    packed = quantize(np.full(SHAPE, 3.0, np.float32), scheme_of(name))
    for key, part in packed.items():
        shaped = arrays[f"layer_{key}"]
        same = np.full(shaped.shape, part.reshape(-1)[0], shaped.dtype)
        arrays[f"layer_{key}"] = same
    arrays["x"] = np.ones((1, SHAPE[1]), np.float32)
    found = run(library, name, 2, arrays, 1) - arrays["r"][:1]
    assert np.allclose(found, 3.0 * SHAPE[1], rtol=2e-3)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=4, max_size=4))
def test_dot2_multiplies_the_halves(parts: list[int]) -> None:
    a, b = ((parts[i] & 0xFFFF) | (parts[i + 1] & 0xFFFF) << 16 for i in (0, 2))
    pair = np.array([a, b], np.uint32).view(np.int32).astype(np.int64)
    found = INTRINSICS["dot2"].numpy(pair[0], pair[1])
    assert found == parts[0] * parts[2] + parts[1] * parts[3]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-128, 127), min_size=4, max_size=4),
    st.lists(st.integers(0, 127), min_size=4, max_size=4),
)
def test_dot4_multiplies_the_bytes(signed: list[int], unsigned: list[int]) -> None:
    a, b = (
        np.array(sum((v & 0xFF) << 8 * i for i, v in enumerate(four)), np.uint32).view(np.int32)
        for four in (signed, unsigned)
    )
    found = INTRINSICS["dot4"].numpy(a.astype(np.int64), b.astype(np.int64))
    assert found == sum(x * y for x, y in zip(signed, unsigned, strict=True))


def test_weights_that_do_not_suit_8_bits_get_16() -> None:
    for name in ("q8f16_1 i8", "q3f16_1 i8"):
        (pairs, *_) = kernels(name, 2)["product"].inputs
        (wide, *_) = kernels(name.removesuffix(" i8"), 2)["product"].inputs
        assert [str(e) for e in pairs.shape] == [str(e) for e in wide.shape]


def test_words_are_asked_for_ahead() -> None:
    group = kernels("q4f16_1", 2)["product"]
    steps = choose(group, host_target())
    (ahead,) = (s for s in steps if isinstance(s, Ahead))
    asked = [n for n in visit(apply(group, steps).body) if isinstance(n, Prefetch)]
    assert {p.place.buffer.name for p in asked} == {"layer_q_weight"}
    other = Ahead(ahead.stage, ahead.axis, "no_such_input", 1)
    with pytest.raises(ScheduleError, match="does not read 'no_such_input'"):
        apply(group, (*steps, other))


@pytest.mark.parametrize(
    ("name", "unroll", "lines"),
    [("q4f16_1", 4, 1), ("q4f16_1 i8", 4, 2), ("q4f16_1 i8", 32, 4), ("q3f16_1", 4, 3)],
)
def test_all_words_of_a_turn_are_asked_for(name: str, unroll: int, lines: int) -> None:
    """16 rows of a weight are a line of words, and a turn takes 1, 2, 3 or a group's 4 of a row."""
    group = kernels(name, 2)["product"]
    knobs = MatvecKnobs(8, unroll=unroll, ahead=8192)
    func = apply(group, schedule(group, Plan("matvec", knobs)))
    assert len([n for n in visit(func.body) if isinstance(n, Prefetch)]) == lines


@pytest.mark.parametrize(
    ("depth", "group", "span", "why"),
    [(60, 32, 8, "does not divide"), (64, 32, 7, "span"), (64, 32, 64, "span")],
)
def test_groups_that_do_not_fit_are_refused(depth: int, group: int, span: int, why: str) -> None:
    with pytest.raises(InvalidIR, match=why):
        op("dynamic_quantize").infer(
            (TensorType((rows(4), wrap(depth)), F32),),
            {"group": group, "span": span, "parts": 2},
        )


def test_a_ragged_depth_stays_a_product_of_floats() -> None:
    trace = Trace("ragged")
    x = trace.param("x", (rows(4), 40), F32)
    function = trace.function(trace.emit("matmul", x, weight(trace, (16, 40), SCHEMES["q4f16_1"])))
    module = IRModule({function.name: function}, function.name, (rows(4),))
    found = quantize_activations(module).functions["ragged"]
    assert [b.call.op for b in found.bindings] == ["dequantize", "matmul"]


def test_the_group_means_what_it_computes(library: Library) -> None:
    group = kernels("q4f16_1", 2)["product"]
    arrays = product_arrays(SHAPE, SCHEMES["q4f16_1"], 2)
    coded = library.run(kernels("q4f16_1", 2)["codes"].name, arrays, n=2)
    arrays |= dict(zip(("x_codes", "x_scales", "x_sums"), coded.values(), strict=True))
    dim = next(d for b in group.inputs for d in b.shape if getattr(d, "name", "") == "n")
    (expected,) = evaluate_group(
        group, {b.name: arrays[b.name] for b in group.inputs}, {dim: 2}
    ).values()
    (found,) = library.run(group.name, arrays, n=2).values()
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
