"""The page allocator: which of the cache's pages are free, and how many owners the others have.

Knows no tokens and no device. A page with several owners is full and only read; `fork` adds an
owner, `free` takes one away. Pages are handed out in a fixed order, so a replayed run of the
scheduler gets the same pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


class Pages:
    """Reference counts of `count` pages and a stack of the free ones."""

    def __init__(self, count: int) -> None:
        self._owners = [0] * count
        self._free = list(range(count - 1, -1, -1))  # page 0 is handed out first

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def available(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages. The caller has looked at `available`."""
        assert count <= self.available, f"{count} pages wanted, {self.available} free"
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def fork(self, pages: Iterable[int]) -> list[int]:
        """Become another owner of pages in use."""
        shared = list(pages)
        for page in shared:
            assert self._owners[page] > 0, f"page {page} is free, it cannot be shared"
            self._owners[page] += 1
        return shared

    def free(self, pages: Iterable[int]) -> None:
        """Give up one ownership of each page; the last owner returns it."""
        for page in pages:
            assert self._owners[page] > 0, f"page {page} is already free"
            self._owners[page] -= 1
            if self._owners[page] == 0:
                self._free.append(page)

    def check(self, tables: Iterable[Iterable[int]]) -> None:
        """Assert that `tables`, the pages of all owners, explain every count exactly."""
        held = Counter(page for table in tables for page in table)
        for page, owners in enumerate(self._owners):
            assert held[page] == owners, f"page {page}: {owners} owners, {held[page]} tables"
        free = set(self._free)
        assert len(free) == len(self._free), "a page is free twice"
        assert free == {p for p, owners in enumerate(self._owners) if owners == 0}, "free list"
