"""Spans of time as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.durations import nanoseconds, words
from penstock.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "span"),
    [("50ms", 50 * 10**6), ("1.5s", 1_500_000_000), ("10m", 600 * 10**9), ("2h", 7200 * 10**9), ("1d", 86400 * 10**9)],
)
def test_what_is_written_is_what_is_meant(text: str, span: int) -> None:
    assert nanoseconds(text) == span
    assert nanoseconds(words(span)) == span


@pytest.mark.parametrize("text", ["", "10", "ms", "-1s", "1 s", "1e3s", "1.s", "१s", "9" * 13 + "s"])
def test_what_is_no_span_is_told_with_an_example(text: str) -> None:
    with pytest.raises(InvalidArgument, match="such as 50ms or 10m") as raised:
        nanoseconds(text, "queue_time")
    assert raised.value.field == "queue_time"


@given(st.integers(0, 7 * 86400 * 10**9))
def test_words_lose_no_more_than_floats_do(span: int) -> None:
    assert abs(nanoseconds(words(span)) - span) <= 10**-6 * span
