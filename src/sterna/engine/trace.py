"""A trace of the engine's steps in Chrome's format, to be opened in Perfetto or chrome://tracing.

In: spans of time with a name, told by the engine's thread while a trace is on. Out: JSON bytes, or
a file of them. Bounded: past the most it holds, the oldest spans go. Knows no scheduler and no
device.

Source: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sterna.base.cache import write_atomic
from sterna.base.errors import UsageError

_LOG = logging.getLogger("sterna")
MOST_EVENTS = 200_000


class Trace:
    """Spans and counters since `began`, in seconds of `time.perf_counter`."""

    def __init__(self, began: float, most: int = MOST_EVENTS) -> None:
        self._began = began
        self._events: deque[dict[str, Any]] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._events)

    def span(self, name: str, start: float, end: float, **args: object) -> None:
        """Something took from `start` to `end`."""
        event = {"name": name, "ph": "X", "pid": 0, "tid": 0, "args": args}
        event |= {"ts": self._microseconds(start), "dur": round((end - start) * 1e6, 1)}
        self._events.append(event)

    def counters(self, name: str, now: float, values: Mapping[str, float]) -> None:
        """Values to draw as curves."""
        at = self._microseconds(now)
        self._events.append({"name": name, "ph": "C", "pid": 0, "ts": at, "args": dict(values)})

    def json(self) -> bytes:
        name = {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "sterna"}}
        thread = {"name": "thread_name", "ph": "M", "pid": 0, "tid": 0, "args": {"name": "engine"}}
        return msgspec.json.encode({"traceEvents": [name, thread, *self._events]})

    def save(self, file: Path) -> None:
        """Write it at an engine's end, which a full disk does not stop: the log says so."""
        try:
            write_atomic(file, self.json())
        except OSError as error:
            _LOG.error("cannot write the trace to %s: %s", file, error.strerror)

    def _microseconds(self, at: float) -> float:
        return round((at - self._began) * 1e6, 1)


def trace_file(path: str) -> Path:
    """The file that a trace will be written to; UsageError, now and not at the end, if it cannot.

    What it holds is kept until then.
    """
    file = Path(path).expanduser()
    try:
        file.open("ab").close()
    except OSError as error:
        raise UsageError(f"cannot write a trace to {path}: {error.strerror}") from None
    return file
