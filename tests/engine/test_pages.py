"""The page allocator under random allocation, sharing and freeing."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sterna.engine.pages import Pages

COUNT = 12


class PagesMachine(RuleBasedStateMachine):
    """Tables of pages, as sequences hold them, against the allocator's own books."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(COUNT)
        self.tables: list[list[int]] = []
        self.kept: list[int] = []

    @rule(data=st.data())
    def allocate(self, data):
        count = data.draw(st.integers(0, self.pages.available))
        before = {page for table in self.tables for page in table}
        taken = self.pages.allocate(count)
        assert len(set(taken)) == count
        assert not before & set(taken)
        self.tables.append(taken)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data):
        table = data.draw(st.sampled_from([*self.tables, self.kept]))
        length = data.draw(st.integers(0, len(table)))
        free = self.pages.available
        self.tables.append(self.pages.fork(table[:length]))
        assert self.pages.available == free

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data())
    def keep(self, data):
        page = data.draw(st.sampled_from([page for table in self.tables for page in table]))
        if page not in self.kept:
            self.pages.keep(page)
            self.kept.append(page)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def drop(self, data):
        page = data.draw(st.sampled_from(self.kept))
        self.kept.remove(page)
        self.pages.drop(page)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def free(self, data):
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pages.free(self.tables.pop(index))

    @invariant()
    def books_balance(self):
        self.pages.check(self.tables, self.kept)
        used = {page for table in self.tables for page in table}
        assert self.pages.available == COUNT - len(used | {*self.kept})
        assert self.pages.idle == len({*self.kept} - used)


PagesMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
TestPages = PagesMachine.TestCase


def test_pages_are_handed_out_in_a_fixed_order():
    pages = Pages(4)
    assert pages.allocate(3) == [0, 1, 2]
    pages.free([1])
    assert pages.allocate(2) == [1, 3]


def test_a_shared_page_is_free_only_after_its_last_owner():
    pages = Pages(2)
    own = pages.allocate(1)
    other = pages.fork(own)
    pages.free(own)
    assert pages.available == 1
    pages.free(other)
    assert pages.available == 2


@pytest.mark.parametrize(
    "misuse", ["too many", "free twice", "fork free", "keep free", "keep twice", "drop"]
)
def test_misuse_is_noticed(misuse):
    pages = Pages(2)
    with pytest.raises(AssertionError):
        {
            "too many": lambda: pages.allocate(3),
            "free twice": lambda: pages.free([0]),
            "fork free": lambda: pages.fork([0]),
            "keep free": lambda: pages.keep(0),
            "keep twice": lambda: [pages.keep(pages.allocate(1)[0]) or pages.keep(0)],
            "drop": lambda: pages.drop(0),
        }[misuse]()


def test_check_notices_a_leak_and_a_stranger():
    pages = Pages(3)
    table = pages.allocate(2)
    with pytest.raises(AssertionError, match="page 1: 1 owners, 0 tables"):
        pages.check([table[:1]])
    with pytest.raises(AssertionError, match="page 2: 0 owners, 1 tables"):
        pages.check([table, [2]])
