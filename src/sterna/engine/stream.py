"""A job under way: an iterator over its results, blocking or async.

Closing either one, or dropping it, cancels what is still running. The two differ only in how
they wait for the next event.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from types import TracebackType
from typing import Generic, TypeVar

from sterna.engine.core import Core
from sterna.engine.generation import Event, Finished, Sink
from sterna.engine.prepare import Job

T = TypeVar("T")


class _Run(Generic[T]):
    """The part that does not wait: submits, assembles, cancels."""

    def __init__(self, core: Core, job: Job[T], sink: Sink) -> None:
        self._core = core
        self._assembler = job.assembler
        self._left = len(job.asks)
        self._ready: deque[T] = deque()
        self._requests = [core.submit(ask, sink) for ask in job.asks]

    @property
    def over(self) -> bool:
        return self._left == 0

    def take(self) -> T | None:
        return self._ready.popleft() if self._ready else None

    def put(self, event: Event) -> None:
        if isinstance(event, Exception):
            self.cancel()
            raise event
        self._ready.extend(self._assembler.put(event))
        self._left -= isinstance(event, Finished)

    def cancel(self) -> None:
        if not self.over:
            self._left = 0
            self._ready.clear()
            for request in self._requests:
                self._core.cancel(request)


class Stream(Generic[T]):
    """Results as they come. Iterate it, or use it in a `with` statement to leave early."""

    def __init__(self, core: Core, job: Job[T]) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._run: _Run[T] = _Run(core, job, self._events.put)

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        while (result := self._run.take()) is None:
            if self._run.over:
                raise StopIteration
            self._run.put(self._events.get())
        return result

    def close(self) -> None:
        self._run.cancel()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_run"):
            self.close()


class AsyncStream(Generic[T]):
    """Results as they come, for `async for` and `async with`."""

    def __init__(self, core: Core, job: Job[T]) -> None:
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        put = self._events.put_nowait
        self._run: _Run[T] = _Run(core, job, lambda e: _hand_over(loop, put, e))

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        while (result := self._run.take()) is None:
            if self._run.over:
                raise StopAsyncIteration
            self._run.put(await self._events.get())
        return result

    async def aclose(self) -> None:
        self._run.cancel()

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_run"):
            self._run.cancel()


def _hand_over(loop: asyncio.AbstractEventLoop, put: Sink, event: Event) -> None:
    loop.call_soon_threadsafe(put, event)
