"""Which plan, and which sizes of batch: the decisions of the TensorRT engine, as values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.plans import PlanHeader
from services.worker.costs import best
from services.worker.engines.trt.buckets import SIZES, Bucket, buckets, split
from services.worker.engines.trt.matching import PlanMissing, Target, choose


def service_time(rows: int) -> float:
    """Milliseconds of the design notes' BERT-base (batching B.2)."""
    return 0.685 + 0.095 * rows


TEN = {rows: service_time(rows) for rows in SIZES if rows <= 32}


def test_ten_buckets_up_to_32() -> None:
    assert [bucket.rows for bucket in buckets([(1, 8, 32)], 32)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


@pytest.mark.parametrize(
    ("ranges", "most", "wanted"),
    [
        ([(1, 5, 9)], 32, [1, 2, 3, 4, 5, 6, 8, 9]),  # the profile's own best, and its end
        ([(1, 8, 32)], 7, [1, 2, 3, 4, 6, 7]),  # no larger than what is asked for
        ([(4, 4, 8)], 2, [4]),  # the smallest that there is
        ([(8, 8, 8)], 32, [8]),
        ([(1, 1, 1)], 1, [1]),
        ([(1, 1, 2), (16, 16, 16)], 16, [1, 2, 16]),
    ],
)
def test_buckets_follow_profiles(ranges: list[tuple[int, int, int]], most: int, wanted: list[int]) -> None:
    assert [bucket.rows for bucket in buckets(ranges, most)] == wanted


def test_of_two_profiles_the_narrowest_takes_a_size() -> None:
    found = buckets([(1, 16, 32), (1, 2, 4)], 32)
    assert found[0] == Bucket(1, 1)
    assert {bucket.profile for bucket in found if bucket.rows > 4} == {0}


def test_a_batch_is_not_cut_where_that_takes_longer() -> None:
    assert best(9, TEN) == 8
    assert split(9, TEN) == [12]  # s(8) + s(1) = 2.2, s(12) = 1.8
    # Where padding is dear, it is cut.
    assert split(9, {1: 0.1, 8: 0.8, 32: 3.2}) == [8, 1]
    assert split(40, TEN) == [32, 8]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.dictionaries(st.integers(1, 64), st.floats(0.01, 100), min_size=1, max_size=8))
def test_pieces_hold_all_rows_and_no_piece_is_idle(rows: int, milliseconds: dict[int, float]) -> None:
    pieces = split(rows, milliseconds)
    assert sum(pieces) >= rows
    assert sum(pieces[:-1]) < rows
    assert set(pieces) <= milliseconds.keys()


def header(builder: str = "tensorrt", version: str = "11.2.0.5", architecture: str = "sm90") -> PlanHeader:
    return PlanHeader("sha256:" + "0" * 64, builder, version, architecture, "fp32", "2026-11-25T00:00:00Z")


TARGET = Target("tensorrt", "11.2.0.5", "sm90")


def test_the_first_plan_that_fits_is_chosen() -> None:
    plans = [header(version="11.1"), header(builder="tensorrt-rtx"), header(architecture="sm80,sm90"), header()]
    assert choose(plans, TARGET) == 2


@pytest.mark.parametrize(
    "change",
    [{"version": "11.2.0.6"}, {"builder": "tensorrt-rtx"}, {"architecture": "sm80"}, {"architecture": "sm100+"}],
)
def test_a_plan_for_something_else_is_a_miss_that_names_what_would_hit(change: dict[str, str]) -> None:
    with pytest.raises(PlanMissing, match=r"cache miss: this worker needs a plan for tensorrt 11\.2\.0\.5 on sm90"):
        choose([header(**change)], TARGET)


def test_no_plan_at_all_is_a_miss_too() -> None:
    with pytest.raises(PlanMissing, match="the version has no plan at all"):
        choose([], TARGET)
