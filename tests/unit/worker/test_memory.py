"""The memory ledger."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import ResourceExhausted
from services.worker.memory import Ledger, offered


def test_what_the_operator_says_is_offered() -> None:
    assert offered(123) == 123
    assert offered(0) > 0


async def test_what_never_fits_is_refused_with_both_numbers() -> None:
    with pytest.raises(ResourceExhausted, match="needs 11 bytes of memory, the worker offers 10"):
        async with Ledger(10).reserved(11):
            pass


async def test_a_reservation_waits_for_one_that_is_given_back() -> None:
    ledger = Ledger(10)
    entered = asyncio.Event()

    async def second() -> None:
        async with ledger.reserved(6):
            entered.set()

    async with ledger.reserved(6):
        assert not ledger.fits(6)
        task = asyncio.ensure_future(second())
        await asyncio.sleep(0)
        assert not entered.is_set()
    await task
    assert entered.is_set()
    assert ledger.reserved_bytes == 0


async def test_a_failed_load_gives_its_memory_back() -> None:
    ledger = Ledger(10)
    with pytest.raises(ValueError, match="the load fails"):
        async with ledger.reserved(10):
            raise ValueError("the load fails")
    assert ledger.reserved_bytes == 0


async def test_every_device_has_a_ledger_of_its_own() -> None:
    ledger = Ledger(10, {0: 100, 1: 50})
    async with ledger.reserved(1, {0: 60}):
        assert not ledger.fits(1, {0: 41}) and ledger.fits(1, {0: 40}) and ledger.fits(1, {1: 50})
        assert ledger.device_reserved == {0: 60, 1: 0}
    assert ledger.device_reserved == {0: 0, 1: 0}
    with pytest.raises(ResourceExhausted, match="needs 51 bytes of device 1, which offers 50"):
        async with ledger.reserved(1, {1: 51}):
            pass
    with pytest.raises(ResourceExhausted, match="needs device 2, which the worker does not have"):
        async with ledger.reserved(1, {2: 1}):
            pass


async def test_what_was_measured_is_booked_where_it_is_more_and_all_of_it_is_given_back() -> None:
    ledger = Ledger(10, {0: 100, 1: 100})
    async with ledger.reserved(5, {0: 20, 1: 20}) as held:
        held.correct(12, 50)
        assert (ledger.reserved_bytes, ledger.device_reserved) == (12, {0: 25, 1: 25})
        assert not ledger.fits(0)
        held.correct(3, 10)
        assert ledger.reserved_bytes == 12
    assert (ledger.reserved_bytes, ledger.device_reserved) == (0, {0: 0, 1: 0})
