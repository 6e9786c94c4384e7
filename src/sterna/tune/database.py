"""Measured plans on disk: one SQLite file, a row for each kernel, device and plan that was tried.

Rows are found again by the kernel's digest, the target and the device's name; rows of another
Sterna, whose rules may write other loops, are left alone and counted. A row is committed when it
is measured, so an interrupt loses nothing. Rows also export to and import from JSON.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sterna.base.cache import cache_dir, cache_root
from sterna.base.errors import UsageError
from sterna.base.version import __version__
from sterna.schedule.choose import RULES, Plan

_KIND, _NAME = "tuning", "plans.sqlite"
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
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"{self.path} is no database of tuned plans ({error}); remove it, or name another"
            ) from None

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
        return [
            Row(k, op, Plan(rule, _knobs(rule, json.loads(knobs))), seconds, bool(exact))
            for k, op, rule, knobs, seconds, exact in found
        ]

    def best(self, where: Where) -> dict[str, Plan]:
        """The fastest exact plan of each kernel: what `compile` takes."""
        chosen: dict[str, Row] = {}
        for row in self.rows(where):
            old = chosen.get(row.kernel)
            if row.exact and (old is None or row.seconds < old.seconds):
                chosen[row.kernel] = row
        return {kernel: row.plan for kernel, row in chosen.items()}

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
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return len(rows)

    def load(self, where: Where, path: Path) -> int:
        """Take plans from an exported file; UsageError for one of another target or Sterna."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            rows = [
                Row(
                    str(p["kernel"]),
                    str(p["op"]),
                    Plan(p["rule"], _knobs(p["rule"], p["knobs"])),
                    float(p["seconds"]),
                    True,
                )
                for p in document["plans"]
            ]
            made_for = (document["target"], document["state"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{path} is no file of exported plans ({error})") from None
        if made_for != (where.target, self.state):
            raise UsageError(
                f"{path} holds plans for target {made_for[0]}, made by "
                f"{'this' if made_for[1] == self.state else 'another'} Sterna; "
                f"wanted are plans for {where.target} of this one"
            )
        self.add(where, rows)
        return len(rows)


def _knobs(rule: str, values: dict[str, Any]) -> Any:
    if rule not in RULES:
        raise ValueError(f"there is no schedule rule {rule!r}")
    if not all(type(v) is int for v in values.values()):
        raise ValueError(f"the knobs of {rule} must be whole numbers")
    return RULES[rule].knobs(**values)
