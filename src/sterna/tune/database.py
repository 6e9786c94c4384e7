"""Measured plans on disk: one SQLite file, a row for each kernel, device and plan that was tried.

Rows are found again by the kernel's digest, the target and the device's name; rows of another
Sterna, whose rules may write other loops, are left alone and counted. A row is committed when it
is measured, so an interrupt loses nothing. Rows also export to and import from JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sterna.base.cache import cache_dir, cache_root, write_atomic
from sterna.base.errors import Unavailable, UsageError
from sterna.base.target import Target
from sterna.base.version import __version__
from sterna.runtime import host
from sterna.runtime.devices import open_device
from sterna.schedule.choose import RULES, Plan

_KIND, _NAME = "tuning", "plans.sqlite"
_MOST = 128  # of a knob that is not tuned, such as the lanes of a register
_SCHEMA = """
CREATE TABLE IF NOT EXISTS plans (
    kernel TEXT, target TEXT, device TEXT, state TEXT, rule TEXT, knobs TEXT,
    op TEXT, seconds REAL, exact INTEGER,
    PRIMARY KEY (kernel, target, device, state, rule, knobs)
)
"""


@dataclass(frozen=True, slots=True)
class Where:
    """What a time is a time of: `device` is the hardware's name, with the threads it used."""

    target: str
    device: str


def here(target: Target) -> Where:
    """What times of this machine are times of; plans for a GPU that is not here can be kept too."""
    if not target.group_threads:
        return Where(target.spec, f"{host.cpu_name()}, {host.usable_cores()} threads")
    return Where(target.spec, _device_name(target.kind))


@cache
def _device_name(kind: str) -> str:
    try:
        device = open_device(kind)
    except Unavailable:
        return "not here"
    try:
        return device.name
    finally:
        device.close()


@dataclass(frozen=True, slots=True)
class Row:
    """One plan tried for one kernel. `seconds` is infinite for a plan that could not be built."""

    kernel: str  # digest of the Group
    op: str
    plan: Plan
    seconds: float
    exact: bool  # the shipped schedule's bits came out


def default_path() -> Path:
    """Where plans lie unless somebody says otherwise; it need not exist."""
    return cache_root() / _KIND / _NAME


@cache
def rules_state() -> str:
    """The version, and a hash of the schedule rules: a time is a time of the loops they write."""
    rules = files("sterna.schedule").joinpath("rules").iterdir()
    sources = sorted((p for p in rules if p.name.endswith(".py")), key=lambda p: p.name)
    text = "".join(p.read_text(encoding="utf-8") for p in sources)
    return f"{__version__} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Database:
    """Rows of one file; made when the first is written."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self.state = rules_state()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if self.path == default_path():
            cache_dir(_KIND)
        try:
            connection = sqlite3.connect(self.path, timeout=30)
            try:
                connection.execute(_SCHEMA)
                yield connection
                connection.commit()
            finally:
                connection.close()
        except (sqlite3.DatabaseError, OverflowError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> UsageError:
        return UsageError(
            f"{self.path} cannot be used as a database of tuned plans ({error}); "
            "remove it, or name another"
        )

    def add(self, where: Where, rows: Iterable[Row]) -> None:
        """Keep rows; one of the same plan is replaced."""
        values = [
            (r.kernel, where.target, where.device, self.state, r.plan.rule,
             json.dumps(asdict(r.plan.knobs), sort_keys=True), r.op, r.seconds, r.exact)
            for r in rows
        ]  # fmt: skip
        with self._open() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO plans VALUES (?,?,?,?,?,?,?,?,?)", values
            )

    def rows(self, where: Where, kernel: str | None = None) -> list[Row]:
        """Rows of this Sterna for a device."""
        if not self.path.is_file():
            return []
        query = (
            "SELECT kernel, op, rule, knobs, seconds, exact FROM plans "
            "WHERE target = ? AND device = ? AND state = ? AND (? IS NULL OR kernel = ?)"
        )
        with self._open() as connection:
            found = connection.execute(
                query, (where.target, where.device, self.state, kernel, kernel)
            ).fetchall()
        try:
            return [
                Row(str(k), str(op), _plan(rule, json.loads(knobs)), float(seconds), bool(exact))
                for k, op, rule, knobs, seconds, exact in found
            ]
        except (ValueError, TypeError) as error:
            raise self._damaged(error) from None

    def best(self, where: Where) -> dict[str, Plan]:
        """The fastest exact plan of each kernel: what `compile` takes."""
        chosen: dict[str, Row] = {}
        for row in self.rows(where):
            old = chosen.get(row.kernel)
            if row.exact and (old is None or row.seconds < old.seconds):
                chosen[row.kernel] = row
        return {kernel: row.plan for kernel, row in chosen.items()}

    def has(self, target: Target) -> bool:
        """Whether any plan for a target is kept, of whatever device and Sterna."""
        if not self.path.is_file():
            return False
        query = "SELECT EXISTS (SELECT 1 FROM plans WHERE target = ?)"
        with self._open() as connection:
            (found,) = connection.execute(query, (target.spec,)).fetchone()
        return bool(found)

    def foreign(self, where: Where) -> int:
        """Rows that another Sterna measured here, which are not used."""
        if not self.path.is_file():
            return 0
        query = "SELECT count(*) FROM plans WHERE target = ? AND device = ? AND state != ?"
        with self._open() as connection:
            (count,) = connection.execute(
                query, (where.target, where.device, self.state)
            ).fetchone()
        return int(count)

    def export(self, where: Where, path: Path) -> int:
        """Write the best plans as JSON; their number."""
        rows = {r.kernel: r for r in sorted(self.rows(where), key=lambda r: -r.seconds) if r.exact}
        document = {
            "target": where.target,
            "device": where.device,
            "state": self.state,
            "plans": [
                {
                    "kernel": r.kernel,
                    "op": r.op,
                    "rule": r.plan.rule,
                    "knobs": asdict(r.plan.knobs),
                    "seconds": r.seconds,
                }
                for r in rows.values()
            ],
        }
        write_atomic(path, (json.dumps(document, indent=1) + "\n").encode())
        return len(rows)

    def load(self, where: Where, path: Path) -> int:
        """Take plans from an exported file; UsageError for one of another target or Sterna."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            made_for = (str(document["target"]), document["state"])
            same = made_for == (where.target, self.state)
            rows = [_imported(p) for p in document["plans"]] if same else []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(
                f"{path} is no file of exported plans ({type(error).__name__}: {error})"
            ) from None
        if not same:
            raise UsageError(
                f"{path} holds plans for target {made_for[0]}, made by "
                f"{'this' if made_for[1] == self.state else 'another'} Sterna; "
                f"wanted are plans for {where.target} of this one"
            )
        self.add(where, rows)
        return len(rows)


def tuned_plans(
    target: Target, say: Callable[[str], None], database: Database | None = None
) -> dict[str, Plan]:
    """The best plans of this device for a target; `say` is told of rows that are not used."""
    database = database or Database()
    if not database.has(target):
        return {}  # so that no driver is opened to learn a name
    where = here(target)
    foreign = database.foreign(where)
    if foreign:
        say(f"{foreign} tuned plans of another Sterna are ignored; `sterna tune` measures again")
    return database.best(where)


def _imported(stored: dict[str, Any]) -> Row:
    """A plan of a file from elsewhere; ValueError and its kin for one that cannot be."""
    seconds = float(stored["seconds"])
    if not 0 < seconds < float("inf"):
        raise ValueError(f"a kernel cannot take {seconds} seconds")
    kernel, op = stored["kernel"], stored["op"]
    if not (isinstance(kernel, str) and re.fullmatch("[0-9a-f]{64}", kernel)):
        raise ValueError("a kernel is named by 64 hexadecimal digits")
    return Row(kernel, str(op)[:200], _plan(stored["rule"], stored["knobs"]), seconds, True)


def _plan(rule: str, values: dict[str, Any]) -> Plan:
    """A plan as it was stored; a knob far from all that is ever tried would write endless loops."""
    if rule not in RULES:
        raise ValueError(f"there is no schedule rule {rule!r}")
    if not isinstance(values, dict):
        raise ValueError(f"the knobs of {rule} are no object")
    knobs = RULES[rule].knobs
    space = RULES[rule].space
    if not space:
        raise ValueError(f"the schedule rule {rule!r} has nothing to tune")
    usual = {f.name: (f.default,) for f in fields(knobs) if type(f.default) is int}
    for name, value in values.items():
        most = 2 * max(space.get(name, (_MOST, *usual.get(name, ()))))
        if type(value) is not int or not (0 if 0 in space.get(name, ()) else 1) <= value <= most:
            raise ValueError(f"knob {name!r} of {rule} is {value!r}, possible is 1 to {most}")
    return Plan(rule, knobs(**values))
