"""Shape profiles from traffic."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.compiling.profiles import batch_ranges, profiles
from penstock.errors import InvalidArgument


def test_without_traffic_the_largest_is_best() -> None:
    assert batch_ranges({}, 32) == [(1, 32, 32)]


def test_the_best_batch_is_where_most_rows_are_served() -> None:
    assert batch_ranges({1: 100, 2: 60, 4: 40}, 8) == [(1, 4, 8)]


def test_two_humps_far_apart_have_a_profile_each() -> None:
    assert batch_ranges({1: 1000, 2: 100, 64: 30, 60: 5}, 64) == [(1, 1, 2), (1, 64, 64)]


def test_a_few_strays_are_no_hump() -> None:
    assert batch_ranges({1: 5, 64: 1000}, 64) == [(1, 64, 64)]


def test_a_batch_above_the_largest_counts_as_it() -> None:
    assert batch_ranges({100: 1}, 8) == [(1, 8, 8)]


@settings(max_examples=100)
@given(st.dictionaries(st.integers(1, 300), st.integers(0, 1000), max_size=12), st.integers(1, 256))
def test_every_batch_that_may_be_served_fits_a_profile(seen: dict[int, int], largest: int) -> None:
    ranges = batch_ranges(seen, largest)
    assert 1 <= len(ranges) <= 2
    assert all(1 <= low <= best <= high for low, best, high in ranges)
    assert ranges[-1][0] == 1
    assert ranges[-1][2] == largest


def test_shapes_of_every_input() -> None:
    inputs: dict[str, list[int | str]] = {"ids": ["batch", "seq"], "scale": ["batch", 3]}
    made = profiles(inputs, [(1, 4, 8)], {"seq": (1, 16, 64)}, {})
    assert made == ({"ids": ((1, 1), (4, 16), (8, 64)), "scale": ((1, 3), (4, 3), (8, 3))},)
    exact = profiles(inputs, [(1, 4, 8)], {"seq": (1, 16, 64)}, {"scale": ((2, 3), (2, 3), (2, 3))})
    assert exact[0]["scale"] == ((2, 3), (2, 3), (2, 3))


def test_a_model_of_fixed_shapes_needs_none() -> None:
    assert profiles({"x": [1, 4]}, [(1, 4, 8)], {}, {}) == ()


@pytest.mark.parametrize(
    "sizes, exact, words",
    [
        ({}, {}, "'seq'"),
        ({"seq": (1, 2)}, {}, "three sizes"),
        ({"seq": (4, 2, 8)}, {}, "do not rise"),
        ({"seq": (1, 2, 3)}, {"other": ()}, "no input 'other'"),
        ({}, {"ids": ((1,), (1,), (1,))}, "2 dimensions"),
    ],
)
def test_what_contradicts_the_model_is_refused(
    sizes: dict[str, tuple[int, ...]], exact: dict[str, tuple[tuple[int, ...], ...]], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        profiles({"ids": ["batch", "seq"]}, [(1, 4, 8)], sizes, exact)


def test_a_fixed_dimension_stays_fixed() -> None:
    with pytest.raises(InvalidArgument, match="dimension 1 is 3"):
        profiles({"x": ["batch", 3]}, [(1, 1, 1)], {}, {"x": ((1, 4), (1, 4), (1, 4))})
