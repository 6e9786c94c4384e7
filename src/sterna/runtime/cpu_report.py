"""What this machine's processor is, and what compiling for it lacks: for `sterna devices`.

Looks, and changes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil

from sterna.runtime.host import (
    available_memory,
    cpu_features,
    cpu_name,
    total_memory,
    usable_cores,
)
from sterna.runtime.report import DeviceReport

_TOLD_FEATURES = (
    "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "avx2", "fma", "f16c", "ssse3",
    "asimddp", "i8mm", "fphp", "sve",
)  # fmt: skip


def cpu_report() -> DeviceReport:
    """The one CPU."""
    cores = usable_cores()
    parts = [cpu_name(), platform.machine(), f"{cores} core{'s' if cores != 1 else ''} to use"]
    features = cpu_features()
    if features:
        parts.append(" ".join(name for name in _TOLD_FEATURES if name in features))
    total, available = total_memory(), available_memory()
    if total is not None and available is not None:
        parts.append(f"{available / 2**30:.1f} of {total / 2**30:.1f} GiB memory available")
    compiler = _compiler()
    parts += [f"C compiler: {compiler}"] if compiler else []
    wanted = "" if compiler else "a C compiler, to compile models: `pip install ziglang`"
    return DeviceReport("cpu", True, ", ".join(part for part in parts if part), wanted)


def _compiler() -> str | None:
    asked = os.environ.get("STERNA_CC")
    if asked:
        return f"{asked} (STERNA_CC)"
    if importlib.util.find_spec("ziglang") is not None:
        return "zig (the ziglang package)"
    return shutil.which("zig")
