"""What this machine has: processors this process may use, their features, memory left.

Every answer respects the limits of a container (affinity, cgroup quota and memory). A fact the
system does not tell is None, never a guess.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_C_LIBRARY = None if sys.platform == "win32" else ctypes.CDLL(None)
_GPU_NODES = ("dri/renderD*", "nvidia[0-9]*", "kfd", "dxg")


@functools.cache
def cpu_features() -> frozenset[str] | None:
    """Instruction set features by their Linux names ("avx2"), or None when not known."""
    if sys.platform == "linux":
        line = _cpuinfo("flags") or _cpuinfo("Features")
        return frozenset(line.split()) if line else None
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        text = _sysctl("machdep.cpu.features") + " " + _sysctl("machdep.cpu.leaf7_features")
        return frozenset(text.lower().replace(".", "_").split()) or None
    return None


def cpu_name() -> str:
    """The processor's name as its maker writes it."""
    found = _cpuinfo("model name") if sys.platform == "linux" else None
    if sys.platform == "darwin":
        found = _sysctl("machdep.cpu.brand_string")
    return found or platform.processor() or platform.machine()


def may_have_gpu() -> bool:
    """Whether this machine may have a GPU; only where Linux has a node for none is it known."""
    if sys.platform != "linux":
        return True
    return any(any(Path("/dev").glob(pattern)) for pattern in _GPU_NODES)


def usable_cores() -> int:
    """Processors this process may keep busy: its affinity, cut by a cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quotas = [quota for folder in _cgroup_folders() if (quota := _quota(folder)) is not None]
    return max(1, min([count, *(math.ceil(quota) for quota in quotas)]))


def available_memory() -> int | None:
    """Bytes that can still be allocated without swapping or being killed, or None."""
    limits = [_system_memory(), *(_cgroup_memory(folder) for folder in _cgroup_folders())]
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


def give_back_memory() -> None:
    """Return what was freed to the system, where the C library would keep it."""
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


def total_memory() -> int | None:
    """Bytes of memory in the machine, or None."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _system_memory() -> int | None:
    text = _read(Path("/proc/meminfo"))
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return total_memory()


def _cgroup_folders() -> list[Path]:
    """This process's cgroup (version 2) and all above it: each may set a limit."""
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            own = _CGROUP / line[3:].strip().lstrip("/")
            return [folder for folder in (own, *own.parents) if folder.is_relative_to(_CGROUP)]
    return []


def _quota(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() else None


def _cgroup_memory(folder: Path) -> int | None:
    limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
    if not limit.isdigit() or not used.isdigit():
        return None
    reclaimable = 0  # file pages count as used, and go when memory is wanted
    for line in _read(folder / "memory.stat").splitlines():
        if line.startswith("inactive_file "):
            reclaimable = int(line.split()[1])
    return int(limit) - int(used) + reclaimable


def _cpuinfo(field: str) -> str | None:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
