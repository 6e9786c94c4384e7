"""What a benchmark found, as records: to JSON and back, and held against an earlier one.

In: metrics, quantiles of what was measured often, phases. Out: one JSON object; or what got worse.
Knows neither engines nor servers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from sterna.base.errors import UsageError
from sterna.base.version import __version__

FORMAT = 1
QUANTILES = 101  # 0 %, 1 %, ... 100 %
MAX_BYTES = 64 << 20


class Metric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure: the median of `samples` where it was measured several times."""

    name: str
    unit: str
    better: Literal["higher", "lower"]
    value: float
    samples: tuple[float, ...] = ()


class KernelTime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kernel's launches in one phase, together: seconds, and what the formulas say they do."""

    name: str
    launches: int
    seconds: float
    bytes: int
    flops: int


class PhaseReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of step: what it moves and computes, and how near that is to what the machine can.

    `bytes` and `flops` are of one step, from the library's own formulas, at `tokens` tokens after
    `context` cached ones. The two rates are set against copies and multiplications measured on
    this machine just before. `kernels` are timed apart, in a library built for that, the longest
    first; `waiting` is what in them the main thread waits for others (forks and barriers), `host`
    is what a step takes beside them: batches made ready, the call, Python.
    """

    name: str
    tokens: int
    context: int
    seconds: float
    bytes: int
    flops: int
    bytes_per_s: float
    flops_per_s: float
    copy_bytes_per_s: float
    peak_flops_per_s: float
    kernels: tuple[KernelTime, ...] = ()
    waiting: float = 0.0
    host: float = 0.0

    @property
    def of_copy(self) -> float:
        return self.bytes_per_s / self.copy_bytes_per_s

    @property
    def of_peak(self) -> float:
        return self.flops_per_s / self.peak_flops_per_s


class BenchReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`subject`: a model, or the address of a server. `settings` decide what is comparable.

    `quantiles` holds the 0th to 100th percentile of each time that was measured often, in seconds.
    """

    kind: Literal["rates", "load"]
    subject: str
    settings: dict[str, Any]
    metrics: tuple[Metric, ...]
    quantiles: dict[str, tuple[float, ...]] = {}
    phases: tuple[PhaseReport, ...] = ()
    sterna: str = __version__
    format: Annotated[int, msgspec.Meta(ge=FORMAT, le=FORMAT)] = FORMAT


class Change(msgspec.Struct, frozen=True):
    """A metric now and in the baseline; `share`: how much slower; negative: faster."""

    metric: Metric
    before: float
    share: float


def to_json(report: BenchReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(report)) + b"\n"


def read(path: Path) -> BenchReport:
    """A report that `to_json` wrote; UsageError says what is wrong with the file."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MAX_BYTES else None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from None
    if data is None:
        raise UsageError(f"{path} has {size:,} bytes, possible are {MAX_BYTES:,}")
    try:
        return msgspec.json.decode(data, type=BenchReport)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is no report of `sterna bench`: {error}") from None


def compare(now: BenchReport, before: BenchReport) -> tuple[Change, ...]:
    """Every metric against the baseline; UsageError where the two did not measure the same."""
    for name, found, wanted in (
        ("kind", now.kind, before.kind),
        *((name, now.settings.get(name), value) for name, value in before.settings.items()),
    ):
        if found != wanted:
            raise UsageError(
                f"the baseline is of another measurement: {name} was {wanted!r} and is {found!r}; "
                "measure with the same options, or make a new baseline with --json"
            )
    values = {metric.name: metric.value for metric in before.metrics}
    missing = [metric.name for metric in now.metrics if metric.name not in values]
    if missing:
        raise UsageError(f"the baseline has no {', '.join(missing)}; make a new one with --json")
    return tuple(_change(metric, values[metric.name]) for metric in now.metrics)


def _change(metric: Metric, before: float) -> Change:
    """Twice the time and half the rate are both 100 % worse."""
    slow, fast = (metric.value, before) if metric.better == "lower" else (before, metric.value)
    if slow == fast:
        return Change(metric, before, 0.0)
    return Change(metric, before, slow / fast - 1 if fast else math.inf)
