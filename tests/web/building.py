"""The browser package as the tests use it: built once, run by node."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "web"


def build() -> Path:
    """The package's `dist`, made from its sources; one process builds at a time."""
    if shutil.which("npm") is None or not (WEB / "node_modules" / "typescript").is_dir():
        pytest.skip("needs npm, and typescript in web/node_modules, which `make test` installs")
    with (WEB / "node_modules" / ".building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if newest(WEB / "src") >= newest(WEB / "dist"):
            run("npm", "run", "--silent", "build")
    return WEB / "dist"


def newest(folder: Path) -> float:
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file()]
    return max(times, default=0.0)


def run(*command: str, seconds: float = 120, **environment: str) -> str:
    """What a command in the package's folder prints; its complaints fail the test."""
    done = subprocess.run(
        command,
        cwd=WEB,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout
