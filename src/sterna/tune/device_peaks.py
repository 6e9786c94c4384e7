"""What a device with work groups does at its best: the roofs of a tuning report.

In: a target. Out: Peaks, of two kernels of ours: one that copies, one that multiplies and adds in
registers. `inspection/peaks.py` does the same for CPUs, with numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from sterna.base.dtype import F32
from sterna.base.target import Target
from sterna.inspection.peaks import Peaks
from sterna.ir.compute import Group, elementwise
from sterna.ir.expr import Buffer, Expr, Load, Var
from sterna.schedule.choose import plan_of
from sterna.tune.build import build
from sterna.tune.launches import LaunchRunner
from sterna.tune.race import Setup

_COPIED = 4_000_000  # numbers: beyond most caches, and within 65535 groups of 64 threads
_CHAINS, _DEPTH = 8, 32  # independent sums of a thread, and steps of each
_TRIES = 3


def device_peaks(target: Target) -> Peaks:
    """Measure now; Unavailable where the device is not here."""
    copy, sums = _copy(), _sums()
    return Peaks(
        2 * F32.bytes * _COPIED / _best(copy, target),
        2 * _CHAINS * _DEPTH * _COPIED / _best(sums, target),
    )


def _best(group: Group, target: Target) -> float:
    """Seconds of the quickest try."""
    built = build(group, {0: plan_of(group, target)}, target)
    with (
        TemporaryDirectory() as folder,
        LaunchRunner([built], group, Setup(target, 1, {"n": _COPIED}), Path(folder)) as runner,
    ):
        return min(runner.round(0) for _ in range(_TRIES))


def _copy() -> Group:
    return _pointwise("copy", lambda x: x)


def _sums() -> Group:
    def body(x: Expr) -> Expr:
        chains = [x * (0.25 + 0.01 * i) for i in range(_CHAINS)]
        for _ in range(_DEPTH):
            chains = [c * x + x for c in chains]
        return sum(chains[1:], chains[0])

    return _pointwise("sums", body)


def _pointwise(name: str, body: Callable[[Expr], Expr]) -> Group:
    """One output of as many numbers as there are inputs."""
    n = Var("n", lo=1)
    x = Buffer("x", F32, (n,))
    out = elementwise("y", F32, (n,), "i", lambda i: body(Load(x, (i,))))
    return Group(name, (x,), (out.out,), (out,))
