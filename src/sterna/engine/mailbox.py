"""From the engine's thread into an event loop, in one hop a step.

The engine puts the events of a step for each listener into the loop's mailbox, then flushes it
once. Waking a loop costs more than all else that is done for a token, so nobody is woken alone.
Knows no requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class Mailbox(Generic[T]):
    """One event loop's. `put` and `flush` are called on the engine's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call = loop.call_soon_threadsafe
        self._post: deque[tuple[Callable[[list[T]], None], list[T]]] = deque()

    def put(self, listener: Callable[[list[T]], None], events: list[T]) -> None:
        """`listener(events)` is to be called on the loop's thread, after the next flush."""
        self._post.append((listener, events))

    def flush(self) -> None:
        """Wake the loop. RuntimeError when it was closed."""
        self._call(self._deliver)

    def _deliver(self) -> None:
        while self._post:
            listener, events = self._post.popleft()
            listener(events)


class Mailboxes(Generic[T]):
    """Those of all event loops that use an engine."""

    def __init__(self) -> None:
        self._of: dict[asyncio.AbstractEventLoop, Mailbox[T]] = {}

    def here(self) -> Mailbox[T]:
        """The mailbox of the running loop."""
        import asyncio  # who has no loop needs none of it

        loop = asyncio.get_running_loop()
        if loop not in self._of:
            self._of = {one: box for one, box in self._of.items() if not one.is_closed()}
            self._of[loop] = Mailbox(loop)
        return self._of[loop]
