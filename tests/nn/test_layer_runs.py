"""Layers of several kinds as repeated bodies."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.nn.module import LONGEST_BODY, runs

ORDERS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def spelled(order: list[int]) -> list[tuple[int, tuple[int, ...], int]]:
    return [(run.first, run.body, run.count) for run in runs(order)]


def test_equal_layers_are_one_run() -> None:
    assert spelled([0] * 32) == [(0, (0,), 32)]


def test_a_period_is_one_body_and_its_rest_another() -> None:
    gemma3 = [0, 0, 0, 0, 0, 1] * 4 + [0, 0]
    assert spelled(gemma3) == [(0, (0, 0, 0, 0, 0, 1), 4), (24, (0,), 2)]
    assert spelled([0, 0, 1] * 2 + [0, 0]) == [(0, (0, 0, 1), 2), (6, (0,), 2)]
    assert spelled([0, 1] * 13) == [(0, (0, 1), 13)]
    assert spelled([0, 0, 1, 0, 0, 1, 0]) == [(0, (0, 0, 1), 2), (6, (0,), 1)]


def test_dense_layers_before_the_others_are_a_run_of_their_own() -> None:
    assert spelled([0, 0, 0] + [1] * 58) == [(0, (0,), 3), (3, (1,), 58)]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ORDERS)
def test_runs_spell_the_order_in_few_bodies(order: list[int]) -> None:
    found = runs(order)
    assert [kind for run in found for kind in run.body * run.count] == order
    assert [run.first for run in found] == [0, *(run.end for run in found[:-1])]
    assert all(len(run.body) <= LONGEST_BODY for run in found)
    assert sum(len(run.body) for run in found) <= len(order)


def test_a_hostile_number_of_layers_takes_no_longer() -> None:
    order = [(i * i) % 7 % 2 for i in range(4096)]
    assert sum(len(run.body) * run.count for run in runs(order)) == 4096
