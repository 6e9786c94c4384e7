"""What this machine has: processors this process may use, their features, memory left.

Every answer respects the limits of a container (affinity, cgroup quota and memory). A fact the
system does not tell is None, never a guess.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from pathlib import Path

from sterna.base.cpu_features import cpu_features, cpuinfo, sysctl

__all__ = [
    "available_memory", "cpu_features", "cpu_name", "give_back_memory", "may_have_gpu",
    "total_memory", "usable_cores",
]  # fmt: skip

_CGROUP = Path("/sys/fs/cgroup")
_C_LIBRARY = None if sys.platform == "win32" else ctypes.CDLL(None)
_GPU_NODES = ("dri/renderD*", "nvidia[0-9]*", "kfd", "dxg")


def cpu_name() -> str:
    """The processor's name as its maker writes it."""
    found = cpuinfo("model name") if sys.platform == "linux" else None
    if sys.platform == "darwin":
        found = sysctl("machdep.cpu.brand_string")
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
