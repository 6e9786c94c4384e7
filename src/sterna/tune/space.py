"""What may be tried for a Group: rules that fit its form, and the values of their knobs.

In: a Group and the plan it has now. Out: plans. A plan's neighbours differ in one knob; what the
knobs may be is said beside each rule (`SPACE`). It measures nothing.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
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
    return hasattr(RULES[plan.rule].knobs, "SPACE")


def everything(plan: Plan) -> Iterator[Plan]:
    """All plans that may be tried in place of `plan`; its vector width stays."""
    for rule in rules_for(plan):
        knobs = RULES[rule].knobs
        names = list(knobs.SPACE)  # type: ignore[attr-defined]
        for values in itertools.product(*knobs.SPACE.values()):  # type: ignore[attr-defined]
            chosen = dict(zip(names, values, strict=True))
            lanes = {} if "lanes" in chosen else {"lanes": plan.knobs.lanes}
            yield Plan(rule, knobs(**lanes, **chosen))


def neighbour(plan: Plan, draw: random.Random) -> Plan:
    """The plan with one knob set to another of its values."""
    space = RULES[plan.rule].knobs.SPACE  # type: ignore[attr-defined]
    name = draw.choice(sorted(space))
    return Plan(plan.rule, replace(plan.knobs, **{name: draw.choice(space[name])}))


def features(plan: Plan) -> NDArray[np.float64]:
    """A plan as numbers, on which a cost model is fitted: logarithms and their products."""
    rule = _PRODUCTS.index(plan.rule) if plan.rule in _PRODUCTS else 0
    numbers = [np.log2(1 + getattr(plan.knobs, f.name)) for f in fields(plan.knobs)]
    logs = np.zeros(6)
    logs[: len(numbers)] = numbers[:6]
    one_hot = np.eye(len(_PRODUCTS))[rule]
    crossed = np.outer(logs, logs)[np.triu_indices(len(logs))]
    return np.concatenate([one_hot, np.outer(one_hot, logs).ravel(), crossed])
