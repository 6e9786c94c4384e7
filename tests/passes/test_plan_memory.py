"""The arena: what is alive together lies apart, what is carried stays in place."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.dtype import F16, F32
from sterna.base.errors import CompileError
from sterna.ir.expr import Buffer, Var, wrap
from sterna.ir.graph import Binding, Call, Function, TensorType, Value
from sterna.passes.plan_memory import ALIGN, SLACK, MemoryPlan, Place, Run, Use, nbytes, plan_memory


def value(name: str, elements: int = 100) -> Value:
    return Value(name, TensorType((wrap(elements),), F32))


def use(reads: tuple[Place, ...], *writes: Place, aliases: dict | None = None) -> Use:
    return Use(reads, writes, aliases or {})


def layer(uses: tuple[Use, ...], params: tuple[Value, ...], results: tuple[Value, ...],
          args: tuple[Value, ...], outs: tuple[Value, ...]) -> Run:  # fmt: skip
    function = Function("layer", params, (), (), results)
    return Run(Binding(outs, Call("layer", args, (("repeat", 4),))), function, uses)


def extent(plan: MemoryPlan, place: Place) -> tuple[int, int]:
    start = plan.offsets[plan.home(place)]
    return start, start + nbytes(place) + SLACK


def apart(plan: MemoryPlan, a: Place, b: Place) -> bool:
    (a_lo, a_hi), (b_lo, b_hi) = extent(plan, a), extent(plan, b)
    return a_hi <= b_lo or b_hi <= a_lo


def chain(*names: str) -> list[Value]:
    return [value(n) for n in names]


def test_a_value_that_was_read_for_the_last_time_gives_its_place() -> None:
    x, a, b, c, y = chain("x", "a", "b", "c", "y")
    timeline = [use((x,), a), use((a,), b), use((b,), c), use((c,), y)]
    plan = plan_memory(timeline, (x, y))
    assert set(plan.offsets) == {a, b, c}
    assert apart(plan, a, b)
    assert apart(plan, b, c)
    assert extent(plan, a) == extent(plan, c)


def test_what_a_kernel_makes_and_needs_at_once_lies_apart() -> None:
    x, a, b, y = chain("x", "a", "b", "y")
    workspace = Buffer("partial", F16, (wrap(300),))
    plan = plan_memory([use((x,), a), use((a,), b, workspace), use((a, b), y)], (x, y))
    assert set(plan.offsets) == {a, b, workspace}
    assert all(apart(plan, p, q) for p, q in [(a, b), (a, workspace), (b, workspace)])


def test_sizes_are_those_at_the_upper_bounds() -> None:
    dim = Var("n", lo=1, hi=7)
    assert nbytes(Value("v", TensorType((dim, wrap(3)), F16))) == 7 * 3 * 2
    assert nbytes(Value("v", TensorType((dim + 1,), F16))) == 8 * 2
    with pytest.raises(CompileError, match="v has a dim without upper bound"):
        nbytes(Value("v", TensorType((Var("pages", lo=1),), F16)))


def test_an_argument_changed_in_place_is_its_result() -> None:
    cache, changed, a, y = chain("cache", "changed", "a", "y")
    plan = plan_memory(
        [use((cache,), a, aliases={changed: cache}), use((changed, a), y)], (cache, y)
    )
    assert plan.home(changed) == plan.home(cache)
    assert set(plan.offsets) == {a}


def repeated(*, after: tuple[Value, ...] = ()) -> tuple[list[Use | Run], dict[str, Value]]:
    """y = layer(layer(... x)), with `other` read in every layer; then `after` is read."""
    v = {n: value(n) for n in "tokens x other px pother a b r y out".split()}
    uses = (
        use((v["px"],), v["a"]),
        use((v["a"], v["px"], v["pother"]), v["b"]),
        use((v["b"],), v["r"]),
    )
    run = layer(uses, (v["px"], v["pother"]), (v["r"],), (v["x"], v["other"]), (v["y"],))
    first = [use((v["tokens"],), v["x"]), use((v["tokens"],), v["other"])]
    return [*first, run, use((v["y"], *(v[n] for n in after)), v["out"])], v


def test_carried_values_share_their_place() -> None:
    timeline, v = repeated()
    plan = plan_memory(timeline, (v["tokens"], v["out"]))
    assert len({plan.home(v[n]) for n in ("x", "px", "r", "y")}) == 1
    assert plan.home(v["other"]) == plan.home(v["pother"])
    others = [v["other"], v["a"], v["b"]]
    assert all(apart(plan, v["x"], o) for o in others[:2])
    # What every layer reads stays through all of them: the second turn reads it again.
    assert all(apart(plan, v["other"], v[n]) for n in ("x", "a", "b", "r"))


def test_what_was_carried_away_is_read_no_more() -> None:
    timeline, v = repeated(after=("x",))
    with pytest.raises(CompileError, match="x is read after its memory was given"):
        plan_memory(timeline, (v["tokens"], v["out"]))
    timeline, v = repeated(after=("other",))
    plan = plan_memory(timeline, (v["tokens"], v["out"]))
    assert apart(plan, v["other"], v["y"])


def test_one_value_is_not_carried_and_kept_at_once() -> None:
    x, px, p, a, r, y = chain("x", "px", "p", "a", "r", "y")
    run = layer((use((px, p), a), use((a,), r)), (px, p), (r,), (x, x), (y,))
    with pytest.raises(CompileError, match="x is read after its memory was given"):
        plan_memory([run], (y,))


def test_a_layer_that_reads_its_input_too_late_is_refused() -> None:
    x, px, a, r, y = chain("x", "px", "a", "r", "y")
    for late in ((use((px,), a), use((a, px), r)), (use((px,), r), use((px, r), a))):
        run = layer(late, (px,), (r,), (x,), (y,))
        with pytest.raises(CompileError, match="layer reads its input px while it writes"):
            plan_memory([run], (y,))


def test_a_layer_that_swaps_its_inputs_is_refused() -> None:
    x, z, px, pz, y, w = chain("x", "z", "px", "pz", "y", "w")
    run = layer((use((px, pz)),), (px, pz), (pz, px), (x, z), (y, w))
    with pytest.raises(CompileError, match="must keep its place"):
        plan_memory([run], ())


def test_what_was_changed_in_place_is_read_no_more() -> None:
    cache, changed, y = chain("cache", "changed", "y")
    with pytest.raises(CompileError, match="cache is read after its memory was given"):
        plan_memory([use((cache,), aliases={changed: cache}), use((cache,), y)], (cache, y))


Programs = st.lists(
    st.tuples(st.integers(1, 5000), st.lists(st.integers(0, 40), max_size=3), st.booleans()),
    min_size=1,
    max_size=14,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(Programs)
def test_no_two_places_alive_together_overlap(program: list[tuple[int, list[int], bool]]) -> None:
    known: list[Value] = [value("in")]
    timeline, lives = [], {}
    for step, (size, picks, scratch) in enumerate(program):
        made = value(f"v{step}", size)
        reads = tuple(dict.fromkeys(known[p % len(known)] for p in picks))
        extra = (Buffer(f"w{step}", F32, (wrap(size // 2 + 1),)),) if scratch else ()
        timeline.append(use(reads, made, *extra))
        for place in (*reads, made, *extra):
            lives[place] = (lives.get(place, (step, step))[0], step)
        known.append(made)
    plan = plan_memory(timeline, (known[0],))
    lives.pop(known[0], None)
    assert set(plan.offsets) == set(lives)
    assert all(offset % ALIGN == 0 and offset >= 0 for offset in plan.offsets.values())
    ends = [extent(plan, place)[1] for place in lives]
    assert max(ends) <= plan.total < max(ends) + ALIGN
    for a, (first, last) in lives.items():
        for b, (begin, end) in lives.items():
            if a is not b and first <= end and begin <= last:
                assert apart(plan, a, b)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=3, max_size=12))
def test_a_chain_takes_no_more_than_its_two_largest_neighbours_would(sizes: list[int]) -> None:
    values = [value(f"v{i}", size) for i, size in enumerate(sizes)]
    plan = plan_memory([use((a,), b) for a, b in pairwise(values)], (values[0], values[-1]))
    inner = [-(-(nbytes(v) + SLACK) // ALIGN) * ALIGN for v in values[1:-1]]
    assert plan.total <= sum(inner)
    assert plan.total >= max((a + b for a, b in pairwise(inner)), default=inner[0])
