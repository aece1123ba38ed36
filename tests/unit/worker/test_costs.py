"""Which size of batch does most for its time, as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.costs import UNKNOWN, best, fitting, padded
from tests.bench.simulate import TEN, bert

COSTS = {size: bert(size) for size in TEN}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [(1, 1), (4, 4), (5, 6), (7, 8), (9, 8), (11, 12), (17, 16), (20, 16), (25, 24), (31, 32), (40, 32)],
)
def test_the_best_size_does_most_useful_rows_for_its_time(rows: int, wanted: int) -> None:
    # 9 rows: 9/s(12) = 4.93 a millisecond, 8/s(8) = 5.54.
    assert best(rows, COSTS) == wanted


def test_what_is_larger_than_any_size_runs_as_none() -> None:
    assert [padded(rows, COSTS) for rows in (1, 5, 32, 33)] == [1, 6, 32, None]
    assert best(5, UNKNOWN) == 0


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([1] * 9, 8),
        ([1] * 11, 11),  # 11/s(12) = 6.02 a millisecond, 8/s(8) = 5.54
        ([9], 1),  # a request is never split
        ([8, 1], 1),
        ([7, 2], 2),  # 7/s(8) = 4.84 a millisecond, 9/s(12) = 4.93
        ([32, 8], 1),
        ([40], 1),  # the engine cuts it
    ],
)
def test_how_many_requests_go(rows: list[int], wanted: int) -> None:
    assert fitting(rows, COSTS) == wanted


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10)))
def test_somebody_goes_and_never_does_it_do_less_for_its_time(rows: list[int], costs: dict[int, float]) -> None:
    count = fitting(rows, costs)
    assert 1 <= count <= len(rows)
    up, down = padded(sum(rows), costs), padded(sum(rows[:count]), costs)
    if count < len(rows) and up is not None and down is not None:
        assert sum(rows[:count]) * costs[up] > sum(rows) * costs[down]
    if not costs:
        assert count == len(rows)
