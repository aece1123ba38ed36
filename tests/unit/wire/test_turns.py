"""Connections with many calls take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.wire.http2 import Limits
from penstock.wire.http2.turns import Turns
from tests.harness.http2 import Ended, request


async def test_one_goes_on_in_each_turn_and_each_in_its_turn() -> None:
    turns, went, turn = Turns(asyncio.get_running_loop()), [], 0

    def portions(name: str, count: int) -> Callable[[], bool]:
        left = count

        def go_on() -> bool:
            nonlocal left
            left -= 1
            went.append((turn, name))
            return left > 0

        return go_on

    for name, count in (("a", 3), ("b", 1), ("c", 2)):
        turns.add(portions(name, count))
    while turns:
        await asyncio.sleep(0)
        turn += 1
    assert [name for _, name in went] == ["a", "b", "c", "a", "c", "a"]
    assert len({turn for turn, _ in went}) == len(went)
    turns.add(portions("d", 1))
    await asyncio.sleep(0)
    assert went[-1][1] == "d" and not turns


async def test_while_others_wait_a_connection_begins_one_call() -> None:
    it = Ended(limits=Limits(calls_at_once=3))
    it.common.turns.add(lambda: False)
    it.connection.arrived(b"".join(request(2 * number + 1) for number in range(5)))
    begun = []
    while True:
        begun.append(len(it.said()) // 3)
        if it.connection.backlog is None:
            break
        it.connection.go_on()
    assert begun == [1, 3, 1]
