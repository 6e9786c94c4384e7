"""Progress on stderr: bars in a terminal, messages elsewhere; stdout is never touched."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sterna.cli.say import note, one_line

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from sterna.jit import Report


@contextlib.contextmanager
def shown() -> Iterator[Report]:
    """A reporter of progress for the length of a `with` statement."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield lines()
        return
    bars = Bars()
    try:
        yield bars.report
    finally:
        bars.stop()


def lines() -> Report:
    """Tell each message as it comes, and nothing of shares: a log wants no line a tensor."""

    def report(stage: str, detail: str, done: int, total: int) -> None:
        if total == 0:
            note(f"{stage}: {detail}")

    return report


class Bars:
    """A bar for each stage with a total, a line for what has none; begun with the first bar."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def report(self, stage: str, detail: str, done: int, total: int) -> None:
        if total == 0 and self._progress is None:
            note(f"{stage}: {detail}")
            return
        progress = self._progress or self._start()
        if total == 0:
            progress.console.print(f"{stage}: {one_line(detail)}", style="dim", markup=False)
            return
        if stage not in self._tasks:
            self._tasks[stage] = progress.add_task(stage, total=total, detail="")
        progress.update(self._tasks[stage], completed=done, total=total, detail=one_line(detail))

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _start(self) -> Progress:
        # rich takes a tenth of a second to import, and most runs have nothing to show
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}", style="dim", markup=False),
            console=Console(stderr=True, highlight=False),
        )
        self._progress.start()
        return self._progress
