"""Measuring on a cluster: how times of machines compare, and a real cluster of one machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from sterna.base.errors import Unavailable
from sterna.base.target import host_target
from sterna.tune.race import Time
from sterna.tune.ray_workers import RayWorkers, together


def test_times_of_machines_are_those_of_the_first() -> None:
    one = [Time(2.0, True), Time(1.0, True), Time(float("inf"), False, "it differs")]
    other = [Time(4.0, True), Time(8.0, True)]  # a machine that something slows down
    assert [t.seconds for t in together([one, other])] == [2.0, 1.0, 4.0, float("inf")]
    assert together([[Time(3.0, True)]]) == [Time(3.0, True)]


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=r"sterna\[ray\]"):
        RayWorkers("auto", host_target())


@pytest.mark.parametrize("address", ["localhost:1", "localhost:99999999"])
def test_nobody_listens(address: str) -> None:
    with pytest.raises(Unavailable, match="no Ray cluster answers"):
        RayWorkers(address, host_target())


@pytest.mark.slow
def test_a_cluster_measures(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    script = Path(__file__).with_name("ray_session.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 machines of the cluster measure" in done.stderr
    assert "plans were measured" in done.stdout
