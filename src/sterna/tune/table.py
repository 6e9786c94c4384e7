"""Tuned plans become numbers of a schedule table: what ships for every model, measured on some.

In: tuned kernels of a model. Out: what to change in the target's row of its table. A row has one
set of knobs for all kernels of a kind, so the best plans of each are measured for all the others
too, and the set is taken that makes their steps the fastest together. `tables/*.json` are written
as they are kept: a line for each set of knobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from sterna.base.cache import write_atomic
from sterna.base.errors import UsageError
from sterna.base.target import Target
from sterna.schedule.choose import RULES, Plan, row_of
from sterna.tune.session import Progress, step_shares

_BEST = 3  # plans of each kernel that all kernels of its kind are measured with
_GAIN = 0.98  # of the time with the shipped knobs: less is scatter

Measure = Callable[[Progress, list[Plan]], None]


@dataclass(frozen=True, slots=True)
class Change:
    """Knobs of a row that were found better: by how much, over how many kernels.

    `section` is the part of the row that they belong to, "" for the row itself.
    """

    rule: str
    section: str
    before: dict[str, int]
    after: dict[str, int]
    gain: float
    kernels: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """Kernels that one set of knobs serves. `section`: its name in the row, "" for the row."""

    rule: str
    section: str
    kernels: list[Progress]


def tuned_row(kernels: list[Progress], target: Target, measure: Measure) -> list[Change]:
    """What to change in the target's row; kernels without a time are left out.

    `measure` gives a kernel times for plans that have none.
    """
    shares = step_shares(kernels)
    timed = [k for k in kernels if k.shipped in k.times]
    changes: list[Change] = []
    fixed: dict[str, int] = {}  # knobs of the whole row that an earlier kind has set
    for kind in _kinds(timed, row_of(target), shares):
        plans, shipped = _candidates(kind, measure), kind.kernels[0].shipped
        if not kind.section:
            plans = [p for p in plans if all(getattr(p.knobs, n) == v for n, v in fixed.items())]
        best = min(plans, key=lambda p: _seconds(p, kind, shares), default=shipped)
        gain = _seconds(shipped, kind, shares) / _seconds(best, kind, shares)
        if 1 / gain > _GAIN:
            best = shipped
        before, after = ({n: getattr(p.knobs, n) for n in RULES[kind.rule].space}
                         for p in (shipped, best))  # fmt: skip
        if not kind.section:
            fixed |= after
        if before != after:
            changes.append(Change(kind.rule, kind.section, before, after, gain, len(kind.kernels)))
    return changes


def _kinds(kernels: list[Progress], row: Any, shares: dict[str, float]) -> list[_Kind]:
    """The kinds of kernels whose knobs the row has, those that take most of a step first."""
    found: dict[tuple[str, str], _Kind] = {}
    for kernel in kernels:
        section = _section(kernel.shipped, row)
        if section is not None:
            key = (kernel.shipped.rule, section)
            found.setdefault(key, _Kind(*key, [])).kernels.append(kernel)
    return sorted(found.values(), key=lambda k: -sum(shares[p.kernel] for p in k.kernels))


def _section(plan: Plan, row: Any) -> str | None:
    """Where in the row a plan's knobs come from, None for knobs that are made of others."""
    if plan.knobs is row:
        return ""
    return next((f.name for f in fields(row) if getattr(row, f.name) is plan.knobs), None)


def _candidates(kind: _Kind, measure: Measure) -> list[Plan]:
    """The best plans of every kernel of a kind, measured for all of them; the shipped one first."""
    plans = [kind.kernels[0].shipped]
    for kernel in kind.kernels:
        own = [p for p, t in kernel.times.items() if p.rule == kind.rule and t < inf]
        plans += sorted(own, key=kernel.times.__getitem__)[:_BEST]
    plans = list(dict.fromkeys(plans))
    for kernel in kind.kernels:
        measure(kernel, plans)
    return [p for p in plans if all(k.times.get(p, inf) < inf for k in kind.kernels)]


def _seconds(plan: Plan, kind: _Kind, shares: dict[str, float]) -> float:
    """Time of all kernels of a kind with one plan, each by its share of a step."""
    return sum(shares[k.kernel] * k.times[plan] / k.before for k in kind.kernels)


def write_table(path: Path, target: Target, changes: list[Change]) -> None:
    """Write the target's table with changes of its row; one that lies at `path` is changed.

    Raises UsageError where that is no such table.
    """
    shipped = files("sterna.schedule") / "tables" / f"{target.table}.json"
    whole = target.group_threads > 0  # one row is all of the table
    kind = type(row_of(target))
    try:
        text = (path if path.exists() else shipped).read_text("utf-8")
        msgspec.json.decode(text, type=kind if whole else dict[int, kind])  # type: ignore[valid-type]
        table = json.loads(text)
        row = table if whole else table[str(target.lanes())]
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise UsageError(f"{path} is no schedule table of {target.spec}: {error}") from None
    for change in changes:
        (row[change.section] if change.section else row).update(change.after)
    write_atomic(path, f"{_written(table)}\n".encode())


def _written(value: Any, indent: str = "") -> str:
    """JSON as tables are kept: a set of knobs in a line."""
    if not isinstance(value, dict):
        return json.dumps(value)
    if indent and not any(isinstance(v, dict) for v in value.values()):
        return json.dumps(value)
    inside = f"\n{indent}  "
    parts = (f"{json.dumps(k)}: {_written(v, indent + '  ')}" for k, v in value.items())
    return f"{{{inside}{f',{inside}'.join(parts)}\n{indent}}}"
