"""A job under way: an iterator over its results, blocking or async.

Closing either one, or dropping it, cancels what is still running. The two differ only in how
they wait for the next event.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from sterna.engine.core import Core
from sterna.engine.generation import Event, Finished, Sink
from sterna.engine.mailbox import Mailbox
from sterna.engine.prepare import Job

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class _Run(Generic[T]):
    """The part that does not wait: submits, assembles, cancels."""

    def __init__(
        self, core: Core, job: Job[T], sink: Sink, flush: Callable[[], None] | None = None
    ) -> None:
        self._core = core
        self._assembler = job.assembler
        self._left = len(job.asks)
        self._ready: deque[T] = deque()
        whole, lazy = job.assembler.whole, job.assembler.lazy
        self._requests = [
            core.submit(ask, sink, whole=whole, lazy=lazy, flush=flush) for ask in job.asks
        ]

    @property
    def over(self) -> bool:
        return self._left == 0

    def take(self) -> T | None:
        return self._ready.popleft() if self._ready else None

    def put(self, events: list[Event]) -> None:
        for event in events:
            if self.over:
                return
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
        self._events: queue.SimpleQueue[list[Event]] = queue.SimpleQueue()
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


class _Arrivals:
    """Events that came for one stream, and the future on which it waits for more.

    Apart from the stream, so that the engine does not keep a stream alive that was dropped.
    """

    def __init__(self) -> None:
        import asyncio  # who has no loop needs none of it

        self._loop = asyncio.get_running_loop()
        self._events: deque[list[Event]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, events: list[Event]) -> None:
        self._events.append(events)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def more(self) -> list[Event]:
        """The next events that have come already, unless they are a failure."""
        if self._events and not isinstance(self._events[0][-1], Exception):
            return self._events.popleft()
        return []

    async def get(self) -> list[Event]:
        while not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
        return self._events.popleft()


class AsyncStream(Generic[T]):
    """Results as they come, for `async for` and `async with`."""

    def __init__(self, core: Core, job: Job[T], mailbox: Mailbox[Event]) -> None:
        self._arrivals = _Arrivals()
        sink = partial(mailbox.put, self._arrivals.put)
        self._run: _Run[T] = _Run(core, job, sink, mailbox.flush)

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        while (result := self._run.take()) is None:
            if self._run.over:
                raise StopAsyncIteration
            self._run.put(await self._arrivals.get())
        return result

    async def several(self) -> list[T]:
        """All results that are there, waiting for one at least; none at the end."""
        try:
            found = [await anext(self)]
        except StopAsyncIteration:
            return []
        while True:
            while (result := self._run.take()) is not None:
                found.append(result)
            if not (events := self._arrivals.more()):
                return found
            self._run.put(events)

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
