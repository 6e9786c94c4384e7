"""What instructions this machine's CPU has, as far as the system tells. Knows no targets."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from pathlib import Path

# What macOS calls features of 64-bit ARM, and what Linux calls them.
_APPLE_ARM = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm"}


@functools.cache
def cpu_features() -> frozenset[str] | None:
    """Instruction set features by their Linux names ("avx2"), or None when not known."""
    if sys.platform == "linux":
        line = cpuinfo("flags") or cpuinfo("Features")
        return frozenset(line.split()) if line else None
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        text = sysctl("machdep.cpu.features") + " " + sysctl("machdep.cpu.leaf7_features")
        return frozenset(text.lower().replace(".", "_").split()) or None
    if sys.platform == "darwin":
        names = _APPLE_ARM.items()
        return frozenset(ours for name, ours in names if sysctl(f"hw.optional.arm.{name}") == "1")
    return None


def cpuinfo(field: str) -> str | None:
    """A field of Linux's /proc/cpuinfo, of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def sysctl(name: str) -> str:
    """A value of macOS's sysctl; "" where there is none."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
