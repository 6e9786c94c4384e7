"""What the engine counts: totals, and histograms of times and sizes, as plain data.

In: what happened, told by the engine's thread. Out: numbers by name, and `Histogram`s that a
server prints as it likes. Anybody may read at any time: a reader may see one step's numbers
partly added, never a wrong total afterwards. Knows no clock and no format.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)


@dataclass(slots=True)
class Histogram:
    """How many values were at most each bound; the last count is of those above all bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class Counters:
    """Totals since the start."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    steps: int = 0
    prompt_tokens: int = 0  # computed: sharing saves some, preemption repeats some
    completion_tokens: int = 0
    step_seconds: float = 0.0  # in the device
    drafts: int = 0  # times that guesses were verified
    draft_tokens: int = 0
    draft_tokens_accepted: int = 0


def _seconds() -> Histogram:
    return Histogram(SECONDS)


def _sizes() -> Histogram:
    return Histogram(SIZES)


@dataclass(slots=True)
class Histograms:
    """Of requests: seconds in each phase and tokens. Of steps: how many tokens they ran.

    A request waits in the queue until its first step, then for its first token (prefill), then
    for its last (decode). `inter_token_seconds` is from one token of an answer to its next.
    """

    queue_seconds: Histogram = field(default_factory=_seconds)
    prefill_seconds: Histogram = field(default_factory=_seconds)
    decode_seconds: Histogram = field(default_factory=_seconds)
    time_to_first_token_seconds: Histogram = field(default_factory=_seconds)
    inter_token_seconds: Histogram = field(default_factory=_seconds)
    request_seconds: Histogram = field(default_factory=_seconds)
    prompt_tokens: Histogram = field(default_factory=_sizes)
    cached_tokens: Histogram = field(default_factory=_sizes)
    completion_tokens: Histogram = field(default_factory=_sizes)
    step_tokens: Histogram = field(default_factory=_sizes)
