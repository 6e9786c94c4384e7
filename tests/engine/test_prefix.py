"""The prefix cache against a list of what was written, under random use."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sterna.engine.pages import Pages
from sterna.engine.prefix import Divergence, PrefixTree

COUNT, SIZE = 16, 3


def tree(count=COUNT, size=SIZE):
    pages = Pages(count)
    return pages, PrefixTree(pages, size)


def write(pages, found, tokens):
    """Publish a sequence as the scheduler does; its pages, which the caller still owns."""
    size = found._size
    table, node = [], found.root
    for at in range(0, len(tokens), size):
        part = tuple(tokens[at : at + size])
        own = pages.allocate(1)
        new = found.insert(node, part, own[0])
        if len(part) == size:
            node = new
            if node.page != own[0]:
                pages.free(own)
                own = pages.fork([node.page])
        table += own
    return table


def cached(found, tokens):
    match = found.match(tokens, len(tokens))
    return len(match.nodes) * found._size + match.shared


def test_a_prefix_is_found_page_by_page_and_within_a_page():
    pages, found = tree()
    pages.free(write(pages, found, [1, 2, 3, 4, 5, 6, 7, 8]))
    assert cached(found, [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 8
    assert cached(found, [1, 2, 3, 4, 5, 9]) == 5
    assert cached(found, [1, 2, 3]) == 3
    assert cached(found, [2, 2, 3]) == 0
    match = found.match([1, 2, 3, 4, 5, 6], 5)
    assert (len(match.nodes), match.shared) == (1, 2)
    assert match.partial.tokens == (4, 5, 6)


def test_no_more_than_asked_for():
    pages, found = tree()
    pages.free(write(pages, found, [1, 2, 3]))
    assert found.match([1, 2, 3], 2).shared == 2
    assert found.match([1], 0).shared == 0


def test_explain_says_where_a_prompt_diverged():
    pages, found = tree()
    pages.free(write(pages, found, [1, 2, 3, 4, 5, 6]))
    assert found.explain([1, 2, 3, 4, 7, 8, 9]) == Divergence(4, (7, 8, 9), (5, 6))
    assert found.explain([1, 2, 3, 4, 5, 6, 7]) == Divergence(6, (7,), ())
    assert found.explain([9]) == Divergence(0, (9,), ())


def test_part_of_a_page_grows_with_its_owner():
    pages, found = tree()
    own = pages.allocate(1)
    node = found.insert(found.root, (1,), own[0])
    assert found.insert(found.root, (1, 2, 3), own[0]) is node
    assert cached(found, [1, 2, 3]) == 3
    assert len(found) == 1
    found.check()


def test_a_longer_page_replaces_its_own_beginning():
    pages, found = tree()
    pages.free(write(pages, found, [1, 2]))
    assert pages.idle == 1
    pages.free(write(pages, found, [1, 2, 3]))
    assert (len(found), pages.idle, pages.available) == (1, 1, COUNT - 1)
    assert found.insert(found.root, (1, 2), pages.allocate(1)[0]) is None


def test_the_same_page_twice_is_kept_once():
    pages, found = tree()
    first = write(pages, found, [1, 2, 3])
    second = write(pages, found, [1, 2, 3])
    assert first == second
    assert len(found) == 1


def test_the_least_recently_used_leaf_goes_first():
    pages, found = tree()
    for start in (10, 20, 30):
        pages.free(write(pages, found, [start, 1, 1, 2, 2, 2]))
    found.use(found.match([10, 1, 1], 3).nodes)
    assert found.evict(1) == 1
    # 10's second page is older than its first, and older than all of 20 and 30
    assert cached(found, [10, 1, 1, 2, 2, 2]) == 3
    assert found.evict(2) == 2
    assert cached(found, [20, 1, 1, 2, 2, 2]) == 0
    assert cached(found, [30, 1, 1, 2, 2, 2]) == 6
    assert found.evicted == 3


def test_pages_in_use_are_never_evicted():
    pages, found = tree()
    table = write(pages, found, [1, 2, 3, 4, 5, 6])
    assert found.evict(5) == 0
    pages.free(table)
    assert found.evict(5) == 2
    assert pages.available == COUNT


def test_many_continuations_of_one_prefix():
    pages, found = tree(200, 4)
    for i in range(150):
        pages.free(write(pages, found, [i % 7, i // 7, 5, i]))
    for i in range(150):
        assert cached(found, [i % 7, i // 7, 5, i]) == 4
        assert cached(found, [i % 7, i // 7, 6]) == 2
    found.check()


def test_check_notices_damage():
    pages, found = tree()
    write(pages, found, [1, 2, 3, 4, 5])
    found.root.order.append((9,))
    with pytest.raises(AssertionError, match="children out of order"):
        found.check()


class PrefixMachine(RuleBasedStateMachine):
    """Sequences over a small alphabet are written, shared, freed and evicted.

    The model is the set of all sequences ever written. What `match` finds must begin one of them
    and the prompt; while nothing was evicted, it is the longest such beginning.
    """

    tokens = st.lists(st.integers(0, 2), min_size=1, max_size=9)

    def __init__(self) -> None:
        super().__init__()
        self.pages, self.found = tree()
        self.tables = []
        self.written = []

    @rule(tokens=tokens)
    def write(self, tokens):
        wanted = -(-len(tokens) // SIZE)
        if self.pages.available < wanted:
            self.found.evict(wanted - self.pages.available)
        if self.pages.available >= wanted:
            self.tables.append(write(self.pages, self.found, tokens))
            self.written.append(tokens)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data):
        at = data.draw(st.integers(0, len(self.tables) - 1))
        self.pages.free(self.tables.pop(at))

    @rule(tokens=tokens)
    def share(self, tokens):
        match = self.found.match(tokens, len(tokens))
        path = [*match.nodes, *([match.partial] if match.partial else [])]
        spelled = [token for node in path for token in node.tokens]
        common = len(match.nodes) * SIZE + match.shared
        assert spelled[:common] == tokens[:common]
        best = max((common_length(tokens, one) for one in self.written), default=0)
        assert common <= best
        if self.found.evicted == 0:
            assert common == best
        self.found.use(path)
        self.tables.append(self.pages.fork(node.page for node in path))

    @rule(count=st.integers(0, 4))
    def evict(self, count):
        idle = self.pages.idle
        assert self.found.evict(count) == min(count, idle)

    @invariant()
    def consistent(self):
        self.found.check()
        self.pages.check(self.tables, (node.page for node in self.found.nodes()))


def common_length(one, other):
    return next(
        (i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(map(len, (one, other)))
    )


PrefixMachine.TestCase.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, derandomize=True
)
TestPrefix = PrefixMachine.TestCase
