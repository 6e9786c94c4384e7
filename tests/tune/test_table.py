"""Plans become a table: one set of knobs for all kernels of a kind, written as tables are kept."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from sterna.base.errors import UsageError
from sterna.base.target import Target, host_target, parse_target
from sterna.cli.main import main
from sterna.schedule.choose import Plan, row_of
from sterna.tune.race import Time
from sterna.tune.session import Progress
from sterna.tune.space import everything
from sterna.tune.table import Change, tuned_row, write_table
from sterna.tune.workers import Workers

TABLES = sorted((files("sterna.schedule") / "tables").iterdir(), key=lambda table: table.name)


@pytest.mark.parametrize("spec", ["cpu:x86-64-v3", "vulkan", "webgpu:barrier-free"])
def test_a_table_without_changes_is_the_shipped_one(spec: str, tmp_path: Path) -> None:
    target = parse_target(spec)
    write_table(tmp_path / "t.json", target, [])
    assert (tmp_path / "t.json").read_text() in [t.read_text("utf-8") for t in TABLES]


def two_matvecs(kernels: list[Progress]) -> tuple[list[Progress], Plan, Plan]:
    """Two kernels of a kind, and a plan that each of them alone would take."""
    both = [k for k in kernels if k.shipped.rule == "matvec"][:2]
    first, second = [p for p in everything(both[0].shipped)
                     if p.rule == "matvec" and p != both[0].shipped][:2]  # fmt: skip
    assert len(both) == 2
    both[0].times = {both[0].shipped: 1.0, first: 0.5, second: 0.6}
    both[1].times = {both[1].shipped: 1.0, second: 0.6}
    return both, first, second


def test_knobs_serve_all_kernels_of_a_kind(kernels: list[Progress]) -> None:
    both, _, second = two_matvecs(kernels)

    def measure(kernel: Progress, plans: list[Plan]) -> None:
        kernel.times |= {p: 5.0 for p in plans if p not in kernel.times}  # `first` of the other

    (change,) = tuned_row(both, host_target(), measure)
    space = change.after
    assert space == {n: getattr(second.knobs, n) for n in space} != change.before
    assert (change.section, change.kernels) == ("matvec", 2)
    assert change.gain > 1.5


def test_scatter_changes_nothing(kernels: list[Progress]) -> None:
    both, first, second = two_matvecs(kernels)
    for kernel in both:
        kernel.times = {kernel.shipped: 1.0, first: 0.99, second: float("inf")}
    assert tuned_row(both, host_target(), lambda kernel, plans: None) == []


def test_a_change_is_in_the_row_of_the_target_alone(tmp_path: Path) -> None:
    target, path = parse_target("cpu:x86-64-v3"), tmp_path / "t.json"
    shipped = row_of(target)
    after = {"rows": 64}
    write_table(path, target, [Change("matvec", "matvec", {"rows": 32}, after, 1.1, 3)])
    lines = path.read_text().splitlines()
    before = next(t for t in TABLES if t.name == f"{target.table}.json").read_text("utf-8")
    different = [new for old, new in zip(before.splitlines(), lines, strict=True) if old != new]
    assert len(different) == 1
    assert replace(shipped.matvec, rows=64) != shipped.matvec
    assert '"rows": 64' in different[0]


@pytest.mark.parametrize("text", ["", "[]", '{"8": {}}', "[" * 5000, "\0"])
def test_a_file_that_is_no_table_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no schedule table"):
        write_table(path, parse_target("cpu:x86-64-v3"), [])
    assert path.read_text() == text


def test_the_command_writes_a_table(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measure(
        self: Workers, group: object, plans: Sequence[Plan], target: Target, sizes: object
    ) -> list[Time]:
        return [Time(1e-3 / p.knobs.lanes, True) for p in plans]

    monkeypatch.setattr(Workers, "measure", measure)
    words = [str(folder), "--trials", "4", "--database", str(tmp_path / "plans.sqlite")]
    assert main(["tune", *words, "--table", str(tmp_path / "t.json")]) == 0
    assert f"wrote {tmp_path / 't.json'}" in capsys.readouterr().err
    assert main(["tune", "--table", "t.json"]) == 2
