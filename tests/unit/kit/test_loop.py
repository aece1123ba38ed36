"""The services' event loop: its clock goes on, and its timers are not early by it."""

from __future__ import annotations

import asyncio
import random
import time

from penstock.kit.loop import Loop


def spend(seconds: float) -> None:
    """Keeps the loop busy within one turn."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_the_clock_goes_on_within_a_turn() -> None:
    async def turn() -> float:
        before = asyncio.get_running_loop().time()
        spend(0.005)
        return asyncio.get_running_loop().time() - before

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(turn()) >= 0.005


def test_no_timer_is_early() -> None:
    early: list[float] = []

    async def run() -> None:
        loop, chance, left = asyncio.get_running_loop(), random.Random(1), 300
        done = asyncio.Event()

        def check(when: float) -> None:
            nonlocal left
            if loop.time() < when:
                early.append(when - loop.time())
            left -= 1
            if not left:
                done.set()

        for _ in range(100):
            # Late in a turn, when uvloop's own clock is behind.
            spend(chance.random() * 0.002)
            when = loop.time() + chance.random() * 0.03
            loop.call_at(when, check, when)
            delay = chance.random() * 0.03
            loop.call_later(delay, check, loop.time() + delay)
            handle = loop.call_later(0.001, check, float("inf"))
            handle.cancel()
            loop.call_later(0, check, loop.time())
            await asyncio.sleep(0)
        await done.wait()
        end = loop.time() + 0.0101
        try:
            async with asyncio.timeout_at(end):
                await asyncio.Event().wait()
        except TimeoutError:
            assert loop.time() >= end

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())
    assert not early
