"""Spaces and proposals: within the space, never what is known, and soon at the optimum."""

import math
import random
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.base.target import host_target
from sterna.schedule.choose import Plan, table
from sterna.tune.propose import propose
from sterna.tune.space import can_tune, everything, features, neighbour, rules_for

ROW = table(host_target().table)[8]  # one row, whatever this machine's is
SHIPPED = (
    Plan("matvec", ROW.matvec),
    Plan("skinny_matmul", ROW.skinny),
    Plan("matmul", ROW.pairs),
    Plan("norm", ROW.norm),
    Plan("elementwise", ROW.elementwise),
)
some_plan = st.sampled_from(SHIPPED)
seeds = st.integers(0, 2**32)
few = settings(derandomize=True, max_examples=30, deadline=None)


def cost(plan: Plan) -> float:
    """A bowl with its bottom somewhere in the space; one rule is twice as slow."""
    knobs = asdict(plan.knobs)
    bowl = sum((math.log2(1 + v) - 3) ** 2 for n, v in knobs.items() if n != "lanes")
    return (1 + bowl) * (2 if plan.rule == "matmul" else 1)


@few
@given(some_plan, seeds, st.integers(1, 12))
def test_proposals_are_new_and_in_the_space(shipped: Plan, seed: int, count: int) -> None:
    draw, times = random.Random(seed), {}
    allowed = {*everything(shipped), shipped}
    for _ in range(5):
        plans = propose(shipped, times, count, draw)
        assert len(plans) == len(set(plans)) <= count
        assert not set(plans) & set(times)
        assert set(plans) <= allowed
        times |= {p: cost(p) if draw.random() < 0.8 else math.inf for p in plans}


@few
@given(some_plan, seeds)
def test_a_neighbour_differs_in_one_knob(shipped: Plan, seed: int) -> None:
    draw = random.Random(seed)
    plan = draw.choice(list(everything(shipped)))
    found = neighbour(plan, draw)
    other = asdict(found.knobs)
    assert found.rule == plan.rule
    assert sum(other[name] != value for name, value in asdict(plan.knobs).items()) == 1
    assert found in set(everything(shipped)) or found.rule != shipped.rule


def test_a_space_is_used_up() -> None:
    shipped, draw = Plan("norm", ROW.norm), random.Random(0)
    times = dict.fromkeys([shipped, *everything(shipped)], 1.0)
    assert propose(shipped, times, 8, draw) == []
    assert propose(shipped, {}, 8, draw) == [shipped]


def test_where_all_failed_the_shipped_plan_has_children() -> None:
    shipped = Plan("matvec", ROW.matvec)
    assert propose(shipped, {shipped: math.inf}, 8, random.Random(0))


def test_the_optimum_is_near_after_a_tenth_of_the_space() -> None:
    shipped = Plan("matmul", ROW.pairs)
    space = list(everything(shipped))
    ranked = sorted(map(cost, space))
    for seed in range(5):
        draw, times = random.Random(seed), {}
        while len(times) < len(space) // 10:
            times |= {p: cost(p) for p in propose(shipped, times, 8, draw)}
        assert min(times.values()) <= ranked[len(space) // 100]


def test_products_share_their_rules_and_widths_stay() -> None:
    for shipped in SHIPPED:
        assert can_tune(shipped)
        lanes = {p.knobs.lanes for p in everything(shipped)}
        products = len(rules_for(shipped)) > 1
        assert not products or lanes == {shipped.knobs.lanes}
        assert len({features(p).shape for p in everything(shipped)}) == 1
