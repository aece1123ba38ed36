"""The ledger sees what must never happen, and when things are well again."""

from __future__ import annotations

import math

import pytest

from tests.fault.ledger import OK, WRONG, Ledger


def steady(ledger: Ledger, start: float, end: float, took: float = 0.01, outcome: str = OK) -> None:
    """Twenty requests a second between two times."""
    for step in range(round((end - start) * 20)):
        number, at = len(ledger.entries), start + step / 20
        ledger.sent(number, at)
        ledger.ended(number, at + took, outcome)


def test_each_kind_of_end_is_counted_as_what_it_is() -> None:
    ledger = Ledger()
    for number in range(5):
        ledger.sent(number, 0.0)
    ledger.ended(0, 0.1, OK)
    ledger.ended(1, 0.1, WRONG)
    ledger.ended(2, 0.1, "UNAVAILABLE")
    ledger.ended(3, 0.1, OK)
    ledger.ended(3, 0.2, OK)
    account = ledger.account()
    assert (account.sent, account.right, account.lost, account.wrong, account.duplicated) == (5, 2, 1, 1, 1)
    assert account.failed == {"UNAVAILABLE": 1}
    assert account.broken == ["lost 1", "wrong 1", "duplicated 1"]
    assert ledger.right == 2


def test_an_id_is_used_once() -> None:
    ledger = Ledger()
    ledger.sent(1, 0.0)
    with pytest.raises(ValueError, match="sent before"):
        ledger.sent(1, 0.1)


def test_recovery_is_when_two_seconds_are_well() -> None:
    ledger = Ledger()
    steady(ledger, 0, 3)
    steady(ledger, 3, 4, outcome="UNAVAILABLE")
    steady(ledger, 4, 5, took=1.0)  # answered, but late
    steady(ledger, 5, 8)
    assert ledger.recovery(3.0) == pytest.approx(2.0)


def test_the_p99_of_a_time_is_that_of_its_usual_window() -> None:
    ledger = Ledger()
    steady(ledger, 0, 5, took=0.01)
    steady(ledger, 5, 10, took=0.5)  # a hiccup
    steady(ledger, 10, 15, took=0.02)
    assert ledger.p99(0, 15) == pytest.approx(0.02)
    assert math.isnan(ledger.p99(0, 4))


def test_without_recovery_it_is_infinite() -> None:
    ledger = Ledger()
    steady(ledger, 0, 3)
    steady(ledger, 3, 6, outcome="UNAVAILABLE")
    assert math.isinf(ledger.recovery(3.0))
    assert math.isinf(Ledger().recovery(0.0))
