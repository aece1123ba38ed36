"""A thousand requests at once as a process of its own, which takes as little as it can of the processors that it shares
with what it hurts: connections are open and messages written before, answers are read after.

`python -m tests.fault.herd <gateway>[,<gateway>…] <model> <count> <seconds>`

Says `ready`; sends all when it is told a line; says one line of JSON when all have ended: how many ended how, and when
by time.monotonic() the first was sent and the last ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from functools import partial
from typing import Final

from penstock.kit.loop import Loop
from penstock.wire.call import Answer
from penstock.wire.client import Peer, write_timeout
from tests.fault.load import outcome, request

CONNECTIONS: Final = 4
"""To each gateway: one alone would not have room for its share of the requests."""


async def run(gateways: list[str], model: str, count: int, seconds: float) -> dict[str, object]:
    """Sends and waits for all; what is to be said."""
    loop = asyncio.get_running_loop()
    peers = [Peer(gateway) for gateway in gateways for _ in range(CONNECTIONS)]
    for peer in peers:
        await peer.unary("ServerLive", b"", deadline=loop.time() + seconds, headers={})
    messages = [request(model, number) for number in range(count)]
    headers = [("grpc-timeout", write_timeout(seconds))]
    ends: dict[int, tuple[Answer | None, BaseException | None]] = {}
    over = asyncio.Event()

    def ended(number: int, answer: Answer | None, problem: BaseException | None) -> None:
        ends[number] = answer, problem
        if len(ends) == count:
            over.set()

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began = time.monotonic()
    for number, message in enumerate(messages):
        peer = peers[number % len(peers)]
        sent = peer.begin("ModelInfer", message, constant=(), varying=headers, done=partial(ended, number))
        assert sent is not None, "a connection has no room for its share"
    async with asyncio.timeout(seconds + 1):
        await over.wait()
    last = time.monotonic()
    outcomes = Counter(outcome(number, *end) for number, end in ends.items())
    for peer in peers:
        await peer.close()
    return {"outcomes": outcomes, "began": began, "ended": last}


def main(arguments: list[str]) -> None:
    """The command."""
    gateways, model, count, seconds = arguments
    with asyncio.Runner(loop_factory=Loop) as runner:
        said = runner.run(run(gateways.split(","), model, int(count), float(seconds)))
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
