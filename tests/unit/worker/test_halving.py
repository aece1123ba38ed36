"""Halves of a batch: everybody who is still there, once, in order, about equal."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from services.worker.halving import halves


@dataclass(frozen=True)
class Seat:
    over: bool = False


@dataclass(frozen=True)
class Waiting:
    rows: int
    item: Seat = Seat()


@given(st.lists(st.builds(Waiting, st.integers(1, 9), st.builds(Seat, st.booleans())), max_size=12))
def test_halves_have_everybody_who_is_there_once_and_in_order(batch: list[Waiting]) -> None:
    there = [waiting for waiting in batch if not waiting.item.over]
    made = halves(batch)
    if len(batch) < 2 or not there:
        assert made == ()
        return
    assert [waiting for half in made for waiting in half] == there
    assert all(made)
    assert all(len(half) < len(batch) for half in made)
    if len(made) == 2:
        first, second = (sum(waiting.rows for waiting in half) for half in made)
        assert abs(first - second) <= max(waiting.rows for waiting in there)


def test_a_single_request_is_not_tried_again() -> None:
    assert halves([Waiting(8)]) == ()


def test_rows_are_what_is_halved() -> None:
    big, small = Waiting(6), Waiting(1)
    assert halves([big, small, small, small]) == ([big], [small, small, small])
