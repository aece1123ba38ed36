"""When loads begin that are ordered together."""

from __future__ import annotations

import random
from itertools import count

import pytest

from services.worker.stagger import SPREAD, pauses


def test_a_single_load_waits_for_nothing() -> None:
    assert pauses(1, found=False, chance=lambda: 0.9) == [0.0]


def test_all_but_the_first_of_many_wait_for_a_share_of_their_own() -> None:
    drawn = (number / 10 for number in count(1))
    assert pauses(3, found=False, chance=lambda: next(drawn)) == pytest.approx([0.0, 0.1 * SPREAD, 0.2 * SPREAD])


def test_what_a_worker_finds_when_it_starts_waits_to_the_last() -> None:
    assert pauses(1, found=True, chance=lambda: 0.5) == [0.5 * SPREAD]
    assert pauses(0, found=True, chance=lambda: 0.5) == []


def test_workers_that_start_together_spread_over_the_whole_time() -> None:
    """A thousand of them with a load each: no hundredth of the time has more than a few of their first questions."""
    chance = random.Random(7).random
    asked = [pauses(1, found=True, chance=chance)[0] for _ in range(1000)]
    slots = [int(100 * pause / SPREAD) for pause in asked]
    assert max(slots.count(slot) for slot in range(100)) <= 25
    assert 0 <= min(asked) < 0.01 * SPREAD
    assert 0.99 * SPREAD < max(asked) < SPREAD
