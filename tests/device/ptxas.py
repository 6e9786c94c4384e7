"""What NVIDIA's assembler makes of kernels: ptxas where it is installed, and the one in NVRTC."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sterna.base.target import parse_target


def spills(ptx: str, architecture: str, folder: Path) -> dict[str, int]:
    """Bytes that each function stores for want of registers.

    Skips the test where no ptxas is installed, or one that is older than the architecture. A name
    that is no row of ours is a mistake, for which no ptxas is too old.
    """
    parse_target(f"cuda:{architecture}")
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("needs ptxas, of CUDA's toolkit")
    (folder / "kernels.ptx").write_text(ptx)
    line = [ptxas, f"-arch={architecture}", "-v", "kernels.ptx", "-o", "kernels.cubin"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    if f"'{architecture}' is not defined" in done.stderr:
        pytest.skip(f"this ptxas does not know {architecture}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "serialized" not in done.stderr, done.stderr[-2000:]  # it could not leave wgmma alone
    return spills_told(ptx, done.stderr)


def spills_told(ptx: str, log: str) -> dict[str, int]:
    """The same, of what the assembler says with -v."""
    told = re.findall(r"properties for (\w+)\n.*?(\d+) bytes spill stores", log)
    assert len(told) == ptx.count(".visible .entry")
    return {title: int(size) for title, size in told}
