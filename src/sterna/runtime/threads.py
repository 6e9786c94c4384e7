"""The worker threads of a CPU executable, and the pool record they share with C.

Threads wait in Python while nothing runs, and sit in the library's `sterna_work` while a step
does: there a fork and join costs half a microsecond, not fifty. The main thread never waits for a
worker to arrive. Mirrors `struct Pool` of codegen/pool.h, ABI 1, by offset; knows no kernels.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

POOL_BYTES = 4096
_THREADS, _SPIN, _LINGER = 0, 1, 2  # i32
_YIELD, _SCRATCH, _SCRATCH_BYTES = 2, 3, 4  # i64
_AWAKE, _STOP = 16, 17  # i32

_SPIN_PAUSES = 2000  # some 50 microseconds
_LINGER_ROUNDS = 16  # so a millisecond: the engine samples between two steps in less


class Team:
    """`count - 1` threads beside the caller's. `pool` is POOL_BYTES of zeroed, aligned memory."""

    def __init__(
        self,
        work: Callable[[int, int], int],
        pool: NDArray[np.uint8],
        count: int,
        scratch: int,
        scratch_bytes: int,
    ) -> None:
        self._flags = pool.view(np.int32)
        words = pool.view(np.int64)
        self._flags[[_THREADS, _SPIN, _LINGER]] = count, _SPIN_PAUSES, _LINGER_ROUNDS
        words[[_YIELD, _SCRATCH, _SCRATCH_BYTES]] = _yield_address(), scratch, scratch_bytes
        self._change = threading.Condition()
        self._sleeping = 0
        self._threads = [
            threading.Thread(
                target=self._live,
                args=(work, pool.ctypes.data, tid),
                name=f"sterna-{tid}",
                daemon=True,
            )
            for tid in range(1, count)
        ]
        for thread in self._threads:
            thread.start()

    def begin(self) -> None:
        """A step starts: wake the threads that sleep, and do not wait for them."""
        if not self._threads:
            return
        with self._change:
            self._flags[_AWAKE] = 1
            if self._sleeping:
                self._change.notify_all()

    def end(self) -> None:
        """The step is over: threads may sleep, after a while in which the next may come."""
        self._flags[_AWAKE] = 0

    def stop(self) -> None:
        """End all threads and wait for them. Safe to call twice."""
        with self._change:
            self._flags[_STOP] = 1
            self._change.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _live(self, work: Callable[[int, int], int], pool: int, tid: int) -> None:
        while True:
            with self._change:
                while not self._flags[_AWAKE] and not self._flags[_STOP]:
                    self._sleeping += 1
                    self._change.wait()
                    self._sleeping -= 1
            if work(pool, tid):
                return


def _yield_address() -> int:
    """The address of what gives a processor away: sched_yield, or its like."""
    if sys.platform == "win32":
        function = ctypes.WinDLL("kernel32").SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return ctypes.cast(function, ctypes.c_void_p).value or 0
