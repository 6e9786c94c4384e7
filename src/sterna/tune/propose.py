"""Which plans to measure next: evolution, and a cost model learned from what was measured.

In: the plans of a kernel that have a time. Out: a few that have none. New plans come from the best
ones by changing a knob, and at random; the model ranks them and the most promising are taken, with
one in four left to chance. The model is ridge regression on logarithms of the knobs.

Source of the scheme: Zheng et al. 2020, "Ansor" (arXiv:2006.06762), in its simplest form.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from math import isfinite

import numpy as np

from sterna.schedule.choose import Plan
from sterna.tune.space import everything, features, neighbour

_PARENTS = 4
_BROOD = 32  # candidates that the model ranks
_RIDGE = 1e-2
_CHANCE = 4  # one of so many is not chosen by the model


def propose(
    shipped: Plan, times: Mapping[Plan, float], count: int, draw: random.Random
) -> list[Plan]:
    """Up to `count` plans not in `times`; fewer when the space is used up."""
    if shipped not in times:
        return [shipped]
    allowed = dict.fromkeys(everything(shipped))
    fresh = [p for p in allowed if p not in times]
    best = sorted((p for p in times if isfinite(times[p])), key=times.__getitem__)[:_PARENTS]
    children = [neighbour(draw.choice(best or [shipped]), draw) for _ in range(_BROOD)]
    strangers = draw.sample(fresh, min(_BROOD, len(fresh)))
    pool = list(
        dict.fromkeys(p for p in (*children, *strangers) if p in allowed and p not in times)
    )
    ranked = sorted(pool, key=_predicted(times, pool).__getitem__)
    by_chance = draw.sample(pool, min(len(pool), count // _CHANCE))
    return list(dict.fromkeys((*by_chance, *ranked)))[:count]


def _predicted(times: Mapping[Plan, float], pool: list[Plan]) -> dict[Plan, float]:
    """Predicted logarithm of the time of each plan in the pool."""
    known = {p: t for p, t in times.items() if isfinite(t)}
    if len(known) < _PARENTS or not pool:
        return dict.fromkeys(pool, 0.0)
    x = np.array([features(p) for p in known])
    y = np.log([known[p] for p in known])
    mean = y.mean()
    inner = x.T @ x + _RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(inner, x.T @ (y - mean))
    return {p: float(features(p) @ weights) for p in pool}
