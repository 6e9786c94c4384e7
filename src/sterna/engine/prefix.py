"""The prefix cache: a radix tree whose edges are pages of tokens with their keys and values.

A path from the root spells the beginning of some earlier sequence. What lies in a page depends on
nothing but the tokens up to its end, so whoever begins with the same tokens may read it, bit for
bit as if computed anew; each adapter has a tree of its own. A node of fewer tokens than a page has
is a leaf: others copy its page before they write on. When pages run out, those that no sequence
owns are dropped, the least recently used first, leaves before what they continue. Knows tokens; no
device, no clock.

Source: Zheng et al. 2023, "SGLang", RadixAttention (arXiv:2312.07104).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from sterna.engine.pages import Pages

Tokens = tuple[int, ...]
NO_ADAPTER = -1  # the model as it is; adapters loaded beside it are numbered from 0


@dataclass(slots=True, eq=False)
class Node:
    """One page: `tokens` lie in its first slots. The root has none, and no page."""

    tokens: Tokens
    page: int
    parent: Node | None
    used: int = 0  # when, by the tree's own count of uses
    children: dict[Tokens, Node] = field(default_factory=dict)
    order: list[Tokens] = field(default_factory=list)  # keys of `children`, sorted

    def path(self) -> list[Node]:
        """The nodes from below the root to this one."""
        found: list[Node] = []
        node = self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Match:
    """The longest beginning of a prompt that lies in the cache.

    `nodes` are whole pages to share. Of `partial`, if any, the first `shared` tokens fit too: its
    page must be copied to be used.
    """

    nodes: tuple[Node, ...]
    partial: Node | None
    shared: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a prompt leaves the cached sequence that it has most in common with.

    From token `cached` on the prompt goes on with `prompt`, the cached one with `known` (both cut
    to a page); either may be empty.
    """

    cached: int
    prompt: Tokens
    known: Tokens


class PrefixTree:
    """Keeps pages of `pages`; `page_size` tokens fill one."""

    def __init__(self, pages: Pages, page_size: int) -> None:
        self.root = Node((), -1, None)
        self._roots = {NO_ADAPTER: self.root}
        self.evicted = 0  # pages, since the start
        self.born: deque[Node] | None = None  # if not None, new full pages are noted here,
        self.gone: deque[Node] = deque()  # and full pages that were dropped here
        self._pages = pages
        self._size = page_size
        self._count = 0
        self._clock = 0
        self._heap: list[tuple[int, int, Node]] = []  # of leaves, and stale entries
        self._entries = 0

    def __len__(self) -> int:
        """Pages kept."""
        return self._count

    def root_of(self, adapter: int) -> Node:
        """Where the sequences of an adapter begin."""
        if adapter not in self._roots:
            self._roots[adapter] = Node((), -1, None)
        return self._roots[adapter]

    def match(self, tokens: Sequence[int], most: int, adapter: int = NO_ADAPTER) -> Match:
        """The longest cached beginning of `tokens`, of at most `most` of them."""
        node, path, at, size = self.root_of(adapter), [], 0, self._size
        while at + size <= most:
            child = node.children.get(tuple(tokens[at : at + size]))
            if child is None:
                break
            path.append(child)
            node, at = child, at + size
        partial, shared = _closest(node, tuple(tokens[at : min(at + size, most)]))
        return Match(tuple(path), partial, shared)

    def explain(self, tokens: Sequence[int], adapter: int = NO_ADAPTER) -> Divergence:
        """Where a prompt leaves what is cached; of several continuations, the last one used."""
        found = self.match(tokens, len(tokens), adapter)
        at = len(found.nodes) * self._size + found.shared
        children = found.nodes[-1].children.values() if found.nodes else ()
        other = found.partial or max(children, key=lambda node: node.used, default=None)
        known = other.tokens[found.shared :] if other else ()
        return Divergence(at, tuple(tokens[at : at + self._size]), known)

    def use(self, nodes: Sequence[Node]) -> None:
        """Note that these nodes, a path from the root, are wanted now."""
        self._clock += 1
        for node in nodes:
            node.used = self._clock

    def insert(self, parent: Node, tokens: Tokens, page: int) -> Node | None:
        """Keep `page`, which its owner filled with `tokens`, after `parent`.

        Returns the node of these tokens: another one if they are cached already (then `page` is
        not kept). None: part of a page, and a longer continuation of the same tokens is cached.
        """
        if (found := parent.children.get(tokens)) is not None:
            self.use((found,))
            return found
        at = bisect_left(parent.order, tokens)
        if len(tokens) < self._size and _begins(parent.order, at, tokens):
            return None
        if at > 0 and tokens[: len(parent.order[at - 1])] == parent.order[at - 1]:
            at -= 1
            shorter = parent.children[parent.order[at]]
            if shorter.page == page:
                return self._grow(shorter, tokens, at)
            self._remove(shorter)
        self._pages.keep(page)
        self._clock += 1
        self._count += 1
        node = Node(tokens, page, parent, self._clock)
        parent.children[tokens] = node
        parent.order.insert(at, tokens)
        self._push(node)
        self._note_birth(node)
        return node

    def evict(self, count: int) -> int:
        """Drop up to `count` pages that no sequence owns, oldest first; how many it were."""
        freed, busy = 0, []
        while freed < count and self._heap:
            used, _, node = heappop(self._heap)
            if node.parent is None or node.children:
                continue  # gone, or a leaf no more: it comes back when it is one again
            if node.used != used:
                self._push(node)  # used since: its turn is later
                continue
            if self._pages.owned(node.page):
                busy.append(node)
                continue
            parent = node.parent
            self._remove(node)
            freed += 1
            if not parent.children and parent.parent is not None:
                self._push(parent)
        for node in busy:
            self._push(node)
        self.evicted += freed
        return freed

    def clear(self) -> None:
        """Drop every page that no sequence owns."""
        self.evict(self._count)

    def nodes(self) -> Iterator[Node]:
        """All nodes but the roots, parents before children."""
        stack = [*self._roots.values()]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            if node.parent is not None:
                yield node

    def check(self) -> None:
        """Assert the tree's shape, and that every leaf can be found by `evict`."""
        found = list(self.nodes())
        assert len(found) == self._count, "pages kept are miscounted"
        waiting = {id(node) for _, _, node in self._heap}
        for node in (*self._roots.values(), *found):
            assert node.order == sorted(node.children), "children out of order"
            for one, other in zip(node.order, node.order[1:]):
                assert other[: len(one)] != one, "a page begins another"
            for tokens, child in node.children.items():
                assert child.tokens == tokens, "a child under another's tokens"
                assert child.parent is node, "a child of another parent"
                assert 0 < len(tokens) <= self._size, f"{len(tokens)} tokens in a page"
            if node.parent is not None:
                full = len(node.tokens) == self._size
                assert full or not node.children, "something continues part of a page"
                assert node.children or id(node) in waiting, "a leaf that cannot be evicted"

    def _grow(self, node: Node, tokens: Tokens, at: int) -> Node:
        """Its owner wrote on in a page that was kept when it was partly filled."""
        parent = node.parent
        assert parent is not None, "the root has no page"
        del parent.children[node.tokens]
        parent.children[tokens] = node
        parent.order[at] = node.tokens = tokens
        self.use((node,))
        self._note_birth(node)
        return node

    def _note_birth(self, node: Node) -> None:
        if self.born is not None and len(node.tokens) == self._size:
            self.born.append(node)

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None, "the root has no page"
        del parent.children[node.tokens]
        del parent.order[bisect_left(parent.order, node.tokens)]
        node.parent = None
        self._pages.drop(node.page)
        self._count -= 1
        if self.born is not None and len(node.tokens) == self._size:
            self.gone.append(node)

    def _push(self, node: Node) -> None:
        self._entries += 1
        heappush(self._heap, (node.used, self._entries, node))
        if len(self._heap) > 2 * self._count + 64:
            live = {id(n): (n.used, i, n) for _, i, n in self._heap if n.parent is not None}
            self._heap = [entry for entry in live.values() if not entry[2].children]
            heapify(self._heap)


def _begins(order: Sequence[Tokens], at: int, tokens: Tokens) -> bool:
    return at < len(order) and order[at][: len(tokens)] == tokens


def _closest(node: Node, tokens: Tokens) -> tuple[Node | None, int]:
    """The child with the most tokens in common, and how many: a neighbour in sorted order."""
    at = bisect_left(node.order, tokens)
    best, shared = None, 0
    for key in node.order[max(0, at - 1) : at + 1]:
        common = _common(key, tokens)
        if common > shared:
            best, shared = node.children[key], common
    return best, shared


def _common(one: Tokens, other: Tokens) -> int:
    count = 0
    for a, b in zip(one, other):
        if a != b:
            break
        count += 1
    return count
