"""When a device is used no more."""

from __future__ import annotations

from services.worker.cordon import MOST, WINDOW, Cordon


def test_a_device_that_is_lost_three_times_in_ten_minutes_is_cordoned_and_stays_so() -> None:
    cordon = Cordon()
    assert [cordon.lost(0, at) for at in (0.0, 100.0, WINDOW - 1)] == [False, False, True]
    assert cordon.cordoned == {0}
    assert not cordon.lost(0, 10 * WINDOW)
    assert cordon.cordoned == {0}


def test_losses_that_are_long_past_do_not_count() -> None:
    cordon = Cordon()
    assert not any(cordon.lost(0, number * WINDOW / (MOST - 1)) for number in range(20))
    assert cordon.cordoned == frozenset()


def test_each_device_has_a_count_of_its_own() -> None:
    cordon = Cordon()
    assert not any(cordon.lost(device, 0.0) for device in (0, 1, 0, 1))
    assert cordon.lost(1, 1.0)
    assert cordon.cordoned == {1}
