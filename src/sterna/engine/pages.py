"""The page allocator: which of the cache's pages are free, and how many owners the others have.

Knows no tokens and no device. Sequences own pages; a page with several owners is only read where
they share it. Beside its owners the prefix cache may keep a page: then it outlives them, idle,
until the cache drops it. Free pages are handed out in a fixed order, so a replayed run of the
scheduler gets the same pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Pages:
    """Reference counts of `count` pages, which are kept, and a stack of the free ones."""

    def __init__(self, count: int) -> None:
        self._owners = [0] * count
        self._kept = [False] * count
        self._idle = 0
        self._free = list(range(count - 1, -1, -1))  # page 0 is handed out first

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def available(self) -> int:
        """Free pages."""
        return len(self._free)

    @property
    def idle(self) -> int:
        """Pages that nobody owns and the prefix cache keeps."""
        return self._idle

    def owned(self, page: int) -> bool:
        return self._owners[page] > 0

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages. The caller has looked at `available`."""
        assert count <= self.available, f"{count} pages wanted, {self.available} free"
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def fork(self, pages: Iterable[int]) -> list[int]:
        """Become another owner of pages in use or kept."""
        shared = list(pages)
        for page in shared:
            if self._owners[page] == 0:
                assert self._kept[page], f"page {page} is free, it cannot be shared"
                self._idle -= 1
            self._owners[page] += 1
        return shared

    def free(self, pages: Iterable[int]) -> None:
        """Give up one ownership of each page; the last owner returns it, unless it is kept."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is already free"
            self._owners[page] -= 1
            if self._owners[page] == 0:
                self._leave(page)

    def keep(self, page: int) -> None:
        """The prefix cache wants a page in use to outlive its owners."""
        assert self._owners[page] > 0, f"page {page} is free, it cannot be kept"
        assert not self._kept[page], f"page {page} is kept twice"
        self._kept[page] = True

    def drop(self, page: int) -> None:
        """The prefix cache gives a page up."""
        assert self._kept[page], f"page {page} is not kept"
        self._kept[page] = False
        if self._owners[page] == 0:
            self._idle -= 1
            self._free.append(page)

    def check(self, tables: Iterable[Iterable[int]], kept: Iterable[int] = ()) -> None:
        """Assert that `tables`, the pages of all owners, and `kept` explain every page exactly."""
        held, wanted = Counter(page for table in tables for page in table), Counter(kept)
        for page, owners in enumerate(self._owners):
            assert held[page] == owners, f"page {page}: {owners} owners, {held[page]} tables"
            assert wanted[page] == self._kept[page], f"page {page}: kept {wanted[page]} times"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        unowned = {p for p, owners in enumerate(self._owners) if owners == 0}
        assert free == {p for p in unowned if not self._kept[p]}, "free list"
        assert self._idle == len(unowned) - len(free), "idle pages"

    def _leave(self, page: int) -> None:
        if self._kept[page]:
            self._idle += 1
        else:
            self._free.append(page)
