"""Processors and memory that a process may use: affinity, and the limits of its control group."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.runtime import host

ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from sterna.runtime.host import usable_cores
print(usable_cores())
"""


@pytest.fixture
def group(tmp_path, monkeypatch):
    """This process's cgroup, "/outer/own", with files that a test writes."""
    own = tmp_path / "outer" / "own"
    own.mkdir(parents=True)
    real = host._read

    def read(path: Path) -> str:
        return "0::/outer/own\n" if path == Path("/proc/self/cgroup") else real(path)

    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    monkeypatch.setattr(host, "_read", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return own


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_held_on_one_core_uses_one():
    done = subprocess.run(
        [sys.executable, "-c", ONE_CORE],
        env={**os.environ, "PYTHONPATH": str(Path(host.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("own", "outer", "cores"),
    [
        ("max 100000\n", "max 100000\n", 8),
        ("300000 100000\n", "max 100000\n", 3),
        ("max 100000\n", "200000 100000\n", 2),
        ("150000 100000\n", "600000 100000\n", 2),
        ("1000 100000\n", "", 1),
        ("", "", 8),
        ("nonsense", "-1 -1", 8),
    ],
)
def test_a_quota_cuts_the_cores(group, own, outer, cores):
    (group / "cpu.max").write_text(own)
    (group.parent / "cpu.max").write_text(outer)
    assert host.usable_cores() == cores


def test_a_memory_limit_counts_what_can_be_reclaimed(group):
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("600000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert host.available_memory() == 500_000
    (group.parent / "memory.max").write_text("700000\n")
    (group.parent / "memory.current").write_text("700000\n")
    assert host.available_memory() == 0
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("max\n")
    available = host.available_memory()
    assert available is not None
    assert available > 1_000_000
