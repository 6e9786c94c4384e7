"""What may be tried for a Group: rules that fit its form, and the values of their knobs.

In: a Group and the plan it has now. Out: plans. A plan's neighbours differ in one knob; what the
knobs may be is said beside each rule (`SPACE`). It measures nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from sterna.schedule.choose import RULES, Plan

_PRODUCTS = ("matvec", "skinny_matmul", "matmul")


def rules_for(plan: Plan) -> tuple[str, ...]:
    """Rules that can serve what this plan serves: those for products serve each other's."""
    return _PRODUCTS if plan.rule in _PRODUCTS else (plan.rule,)


def can_tune(plan: Plan) -> bool:
    """Whether the rule has knobs to turn."""
    return bool(_space(plan.rule))


def everything(plan: Plan) -> Iterator[Plan]:
    """All plans that may be tried in place of `plan`; its vector width stays.

    Knobs that are no part of a rule's space are as in `plan`, or as the rule has them by itself.
    """
    for rule in rules_for(plan):
        start = plan.knobs if rule == plan.rule else RULES[rule].knobs(lanes=plan.knobs.lanes)
        space = _space(rule)
        for values in itertools.product(*space.values()):
            yield Plan(rule, replace(start, **dict(zip(space, values, strict=True))))


def _space(rule: str) -> Mapping[str, tuple[int, ...]]:
    found: Mapping[str, tuple[int, ...]] = getattr(RULES[rule].knobs, "SPACE", {})
    return found


def neighbour(plan: Plan, draw: random.Random) -> Plan:
    """The plan with one knob set to another of its values; itself where there is no other."""
    space = _space(plan.rule)
    name = draw.choice(sorted(space))
    others = [v for v in space[name] if v != getattr(plan.knobs, name)]
    return Plan(plan.rule, replace(plan.knobs, **{name: draw.choice(others)})) if others else plan


def features(plan: Plan) -> NDArray[np.float64]:
    """A plan as numbers, on which a cost model is fitted: logarithms and their products."""
    rule = _PRODUCTS.index(plan.rule) if plan.rule in _PRODUCTS else 0
    numbers = [np.log2(1 + getattr(plan.knobs, f.name)) for f in fields(plan.knobs)]
    logs = np.zeros(6)
    logs[: len(numbers)] = numbers[:6]
    one_hot = np.eye(len(_PRODUCTS))[rule]
    crossed = np.outer(logs, logs)[np.triu_indices(len(logs))]
    return np.concatenate([one_hot, np.outer(one_hot, logs).ravel(), crossed])
