"""The database: what is found again, what is not used, and files that are none."""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from sterna.base.errors import UsageError
from sterna.base.target import host_target
from sterna.schedule.choose import Plan
from sterna.schedule.rules.norm import NormKnobs
from sterna.schedule.rules.product import MatvecKnobs
from sterna.tune.database import Database, Row, Where, here, tuned_plans

HERE = Where("cpu:x", "a processor, 2 threads")
FAST = Row("a" * 64, "linear", Plan("matvec", MatvecKnobs(8, unroll=4)), 1e-3, True)
SLOW = replace(FAST, plan=Plan("matvec", MatvecKnobs(8, unroll=8)), seconds=2e-3)
WRONG = replace(FAST, plan=Plan("matvec", MatvecKnobs(8, unroll=16)), seconds=1e-9, exact=False)
NORM = Row("b" * 64, "norm", Plan("norm", NormKnobs(8)), 1e-6, True)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    found = Database(tmp_path / "plans.sqlite")
    found.add(HERE, [FAST, SLOW, WRONG, NORM])
    return found


def test_the_fastest_exact_plan_is_best(database: Database) -> None:
    assert database.best(HERE) == {FAST.kernel: FAST.plan, NORM.kernel: NORM.plan}
    assert set(database.rows(HERE, FAST.kernel)) == {FAST, SLOW, WRONG}
    database.add(HERE, [replace(FAST, seconds=5e-3)])
    assert database.best(HERE)[FAST.kernel] == SLOW.plan


def test_other_devices_and_targets_have_their_own(database: Database) -> None:
    for where in (Where("cpu:y", HERE.device), Where(HERE.target, "another, 2 threads")):
        assert database.best(where) == {}
        assert database.foreign(where) == 0


def test_rows_of_another_sterna_are_ignored_with_a_note(tmp_path: Path) -> None:
    path, where, told = tmp_path / "plans.sqlite", here(host_target()), []
    other = Database(path)
    other.state = "0.0.1 0123456789abcdef"
    other.add(where, [FAST, SLOW])
    assert tuned_plans(host_target(), told.append, Database(path)) == {}
    assert told == ["2 tuned plans of another Sterna are ignored; `sterna tune` measures again"]


def test_nothing_is_made_by_reading(tmp_path: Path) -> None:
    path = tmp_path / "none.sqlite"
    assert tuned_plans(host_target(), pytest.fail, Database(path)) == {}
    assert not path.exists()


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plans.sqlite"
    path.write_bytes(content)
    for use in (Database(path).best, Database(path).foreign, lambda w: Database(path).add(w, [])):
        with pytest.raises(UsageError, match=r"plans\.sqlite cannot be used as a database"):
            use(HERE)


@pytest.mark.parametrize("knobs", ["{", "[]", '{"lanes": "8"}', '{"lanes": 8, "rows": 0}', "null"])
def test_a_damaged_row_is_one_sentence(database: Database, knobs: str) -> None:
    with sqlite3.connect(database.path) as connection:
        connection.execute("UPDATE plans SET knobs = ? WHERE seconds = 1e-3", (knobs,))
    connection.close()
    with pytest.raises(UsageError, match="cannot be used as a database"):
        database.best(HERE)


def test_export_and_import(database: Database, tmp_path: Path) -> None:
    file, device = tmp_path / "plans.json", Where(HERE.target, "another, 8 threads")
    assert database.export(HERE, file) == 2
    other = Database(tmp_path / "other.sqlite")
    assert other.load(device, file) == 2
    assert other.best(device) == database.best(HERE)
    with pytest.raises(UsageError, match="holds plans for target cpu:x, made by this Sterna"):
        other.load(Where("cpu:y", "another"), file)
    other.state = "0.0.1 0123456789abcdef"
    with pytest.raises(UsageError, match="made by another Sterna"):
        other.load(device, file)


PLAN = {
    "kernel": "a" * 64, "op": "norm", "rule": "norm", "knobs": {"lanes": 8}, "seconds": 1e-3,
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": -1}, {"seconds": 0}, {"seconds": float("nan")}, {"seconds": float("inf")},
        {"seconds": []}, {"kernel": "../x"}, {"kernel": 7}, {"rule": "no"}, {"rule": []},
        {"rule": "norm_groups", "knobs": {}}, {"knobs": {}}, {"knobs": []}, {"knobs": None},
        {"knobs": {"lanes": 10**9}}, {"knobs": {"lanes": True}}, {"knobs": {"lanes": -8}},
        {"knobs": {"lanes": 8, "more": 1}},
    ],
)  # fmt: skip
def test_hostile_plans_are_refused_whole(database: Database, tmp_path: Path, change: dict) -> None:
    file = tmp_path / "plans.json"
    plans = [PLAN, PLAN | change]
    file.write_text(json.dumps({"target": HERE.target, "state": database.state, "plans": plans}))
    before = database.rows(HERE)
    with pytest.raises(UsageError, match=r"plans\.json is no file of exported plans"):
        database.load(HERE, file)
    assert database.rows(HERE) == before


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", "7", "[" * 100_000, '{"target": 1}', "\xff"])
def test_files_that_are_none(database: Database, tmp_path: Path, text: str) -> None:
    file = tmp_path / "plans.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"plans\.json"):
        database.load(HERE, file)
    with pytest.raises(UsageError, match=r"absent\.json"):
        database.load(HERE, tmp_path / "absent.json")
