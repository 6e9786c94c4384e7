"""A terminal to look at: a command on a pseudo-terminal, what it draws on a screen in memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Self

import pexpect
import pyte

SECONDS = 30


def _without_a_size() -> dict[str, str]:
    """The environment, but for the size of the terminal that the tests were started from."""
    return {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}


class Screen:
    """`columns` by `rows` characters; `raw` is every byte that came."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self._screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=1)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._program = pexpect.spawn(
            command[0],
            list(command[1:]),
            dimensions=(rows, columns),
            env={**_without_a_size(), "TERM": "xterm-256color", **env},
            preexec_fn=_hears_interrupts,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close(force=True)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, and above it what scrolled away."""
        above = [
            "".join(row[x].data for x in range(self._screen.columns))
            for row in self._screen.history.top
        ]
        return [line.rstrip() for line in (*above, *self._screen.display)]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def type(self, keys: str) -> None:
        self._program.send(keys)

    def wait(self, *texts: str, times: int = 1) -> None:
        """Until every text stands on the screen, `times` times."""
        end = time.monotonic() + SECONDS
        while True:
            shown = self.text
            if all(shown.count(text) >= times for text in texts):
                return
            assert time.monotonic() < end, f"waited for {texts} in vain:\n{shown}"
            self._read(0.05)

    def wait_end(self) -> int:
        """The program's exit status, once it is over."""
        with contextlib.suppress(pexpect.EOF):
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                self._take(0.1)
        self._program.close()
        return int(self._program.exitstatus if self._program.exitstatus is not None else -1)

    def _read(self, seconds: float) -> None:
        with contextlib.suppress(pexpect.EOF):
            self._take(seconds)

    def _take(self, seconds: float) -> None:
        with contextlib.suppress(pexpect.TIMEOUT):
            data = self._program.read_nonblocking(65536, timeout=seconds)
            self.raw += data
            self._stream.feed(data)
            if b"\x1b[6n" in data:  # a terminal is asked where its cursor is
                cursor = self._screen.cursor
                self._program.send(f"\x1b[{cursor.y + 1};{cursor.x + 1}R")


def _hears_interrupts() -> None:
    """As a shell starts a program; what a shell has put in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
