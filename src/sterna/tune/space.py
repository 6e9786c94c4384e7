"""What may be tried for a Group: rules that fit its form, and the values of their knobs.

In: a Group and the plan it has now. Out: plans. A plan's neighbours differ in one knob; what the
knobs may be is said beside each rule (`RULES`). It measures nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sterna.schedule.choose import RULES, Plan
from sterna.schedule.rules.work_groups import GroupKnobs

_PRODUCTS = (
    ("matvec", "skinny_matmul", "matmul"),
    ("matvec_pairs", "skinny_matmul_pairs", "matmul_pairs"),
    ("skinny_matmul_tiles", "matmul_tiles"),
    ("matvec_groups", "matmul_groups"),
)


def rules_for(plan: Plan) -> tuple[str, ...]:
    """Rules that can serve what this plan serves: those for products serve each other's."""
    return next((rules for rules in _PRODUCTS if plan.rule in rules), (plan.rule,))


def can_tune(plan: Plan) -> bool:
    """Whether the rule has knobs to turn."""
    return bool(RULES[plan.rule].space)


def everything(plan: Plan) -> Iterator[Plan]:
    """All plans that may be tried in place of `plan`; its vector width stays.

    Knobs that are no part of a rule's space are as in `plan`, or as the rule has them by itself.
    """
    for rule in rules_for(plan):
        start, space = _start(plan, rule), RULES[rule].space
        for values in itertools.product(*space.values()):
            yield Plan(rule, replace(start, **dict(zip(space, values, strict=True))))


def _start(plan: Plan, rule: str) -> Any:
    """Knobs from which plans of a rule begin; rules of work groups have one record together."""
    knobs = RULES[rule].knobs
    if rule == plan.rule or knobs is GroupKnobs:
        return plan.knobs
    return knobs(lanes=plan.knobs.lanes)


def neighbour(plan: Plan, draw: random.Random) -> Plan:
    """The plan with one knob set to another of its values; itself where there is no other."""
    space = RULES[plan.rule].space
    name = draw.choice(sorted(space))
    others = [v for v in space[name] if v != getattr(plan.knobs, name)]
    return Plan(plan.rule, replace(plan.knobs, **{name: draw.choice(others)})) if others else plan


def features(plan: Plan) -> NDArray[np.float64]:
    """A plan as numbers, on which a cost model is fitted: logarithms and their products."""
    rules = rules_for(plan)
    names = sorted({name for rule in rules for name in RULES[rule].space})
    logs = np.array([np.log2(1 + getattr(plan.knobs, name, 0)) for name in names])
    one_hot = np.eye(len(rules))[rules.index(plan.rule)]
    crossed = np.outer(logs, logs)[np.triu_indices(len(logs))]
    return np.concatenate([one_hot, np.outer(one_hot, logs).ravel(), crossed])
