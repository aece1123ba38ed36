"""Pauses grow to a cap; after each one a single probe decides."""

from __future__ import annotations

from services.gateway.ejection import Ejection


def test_fine_until_something_fails() -> None:
    ejection = Ejection(base=1, cap=8)
    assert ejection.fine
    assert not ejection.ejected(0.0)
    assert not ejection.started(0.0)  # an ordinary request, not a probe


def test_pauses_double_up_to_the_cap() -> None:
    ejection, now, pauses = Ejection(base=1, cap=8), 100.0, []
    for _ in range(6):
        assert ejection.failed(now)
        pause = next(step for step in range(1, 20) if not ejection.ejected(now + step))
        pauses.append(pause)
        now += pause
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_requests_that_break_together_count_once() -> None:
    ejection = Ejection(base=1, cap=8)
    assert ejection.failed(0.0)
    assert not ejection.failed(0.1)
    assert not ejection.ejected(1.0)


def test_one_probe_at_a_time() -> None:
    ejection = Ejection(base=1, cap=8)
    ejection.failed(0.0)
    assert ejection.ejected(0.5)
    assert not ejection.started(0.5)  # tried in need, but no probe
    assert ejection.started(1.0)
    assert ejection.ejected(1.1)
    assert not ejection.started(1.1)
    ejection.succeeded()
    assert ejection.fine
    assert not ejection.ejected(1.2)


def test_a_probe_that_fails_pauses_longer_and_one_that_left_leaves_room() -> None:
    ejection = Ejection(base=1, cap=8)
    ejection.failed(0.0)
    ejection.started(1.0)
    assert ejection.failed(1.5)
    assert ejection.ejected(3.4)
    assert ejection.started(3.5)
    ejection.left()
    assert not ejection.ejected(3.6)
    assert ejection.started(3.6)


def test_a_thousand_failures_do_not_overflow() -> None:
    ejection, now = Ejection(base=1, cap=8), 0.0
    for _ in range(2000):
        ejection.failed(now)
        now += 8
    assert ejection.ejected(now - 0.1)
    assert not ejection.ejected(now)
