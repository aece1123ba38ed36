"""Row 19 in numbers: the transport's client against a server whose answers come again, late, and out of order."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

from penstock.wire.call import Answer, Call
from penstock.wire.client import SERVICE, ConnectionLost, Peer
from penstock.wire.http2 import Method, Server
from penstock.wire.http2 import frames as f
from tests.fault.proxy import Proxy
from tests.fault.replays import Replayer

FRAMES = 100_000
TOGETHER = 32


async def echo(call: Call) -> Answer:
    await asyncio.sleep(0)
    return Answer(call.payload, {"penstock-worker": "w-1"})


async def test_a_hundred_thousand_frames_that_come_again_end_no_call_twice_and_none_wrongly() -> None:
    made: list[Replayer] = []

    def replayer() -> Replayer:
        made.append(Replayer(random.Random(len(made)), most=20))
        return made[-1]

    def replayed() -> int:
        return sum(each.replayed for each in made)

    ends: Counter[str] = Counter()
    told: Counter[int] = Counter()
    server = Server({f"/{SERVICE}/ModelInfer": Method("ModelInfer", echo)})
    port = await server.start("127.0.0.1", 0)
    try:
        with Proxy(("127.0.0.1", port), transform=lambda: replayer().feed) as proxy:
            peer = Peer(proxy.address)

            async def one(number: int) -> None:
                payload = f"call {number}".encode()
                try:
                    answer = await peer.unary(
                        "ModelInfer", payload, deadline=asyncio.get_running_loop().time() + 30, headers={}
                    )
                    ends["right" if bytes(answer.payload) == payload else "wrong"] += 1
                except ConnectionLost:  # the client may hang up on a peer that goes on like this
                    ends["lost its connection"] += 1
                told[number] += 1

            number = 0
            while replayed() < FRAMES:
                await asyncio.gather(*(one(number + each) for each in range(TOGETHER)))
                number += TOGETHER
            await peer.close()
    finally:
        await server.close()
    assert set(told.values()) == {1}
    assert len(told) == number
    assert ends["wrong"] == 0
    assert ends["right"] > 0.9 * number, ends
    assert sum(each.swapped for each in made) > 0


def test_what_goes_in_comes_out_at_least_once_and_whole() -> None:
    answers = [_answer(2 * number + 1) for number in range(500)]
    replayer = Replayer(random.Random(1))
    said = b"".join(answers)
    out = b"".join(replayer.feed(said[at : at + 100]) for at in range(0, len(said), 100))
    assert replayer.replayed > 100
    assert all(answer in out for answer in answers)


def _answer(stream: int) -> bytes:
    body = f"answer {stream}".encode()
    return f.frame(f.DATA, 0, stream, body) + f.frame(f.HEADERS, f.END_STREAM | f.END_HEADERS, stream, b"\x88")
