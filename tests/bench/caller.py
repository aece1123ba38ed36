"""A real grpcio client as load, in a process of its own: every answer compared, deadlines that vary from call to call.

`python -m tests.bench.caller closed <address> <request> <answer> <connections> <in flight on each> <seconds>`
`python -m tests.bench.caller open <address> <request> <answer> <rate> <seconds> <seed>`

The files hold the messages without gRPC's prefix. Prints one line of JSON. Closed: the next call goes when one is
answered. Open: calls go at Poisson times whatever the answers do; `sent` are the seconds at which they really went,
`took` what each took (null for a failure, counted in `failures`), `late` how far behind its schedule the client fell.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from tests.bench.simulate import poisson
from tests.bench.yardstick import OPTIONS, SERVICE

WRONG = "wrong answer"


def channels(address: str, count: int) -> list[Any]:
    """Multicallables, each on a connection of its own."""
    apart = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    return [
        grpc.aio.insecure_channel(address, options=apart).unary_unary(f"/{SERVICE}/ModelInfer") for _ in range(count)
    ]


async def closed(
    address: str, request: bytes, answer: bytes, connections: int, depth: int, seconds: float
) -> dict[str, Any]:
    """`connections` times `depth` callers, each with one call in flight; how many answers, how many wrong."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    chance = random.Random(1)
    took: list[float] = []
    wrong = 0

    async def caller(call: Any) -> None:
        nonlocal wrong
        while (began := loop.time()) < end:
            try:
                right = await call(request, timeout=chance.uniform(5.0, 60.0)) == answer
            except grpc.aio.AioRpcError:
                right = False
            wrong += not right
            took.append(loop.time() - began)

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for call in channels(address, connections):
            for _ in range(depth):
                group.create_task(caller(call))
    return {"took": took, "wrong": wrong, "seconds": loop.time() - began}


async def opened(address: str, request: bytes, answer: bytes, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Calls at Poisson times over four connections."""
    loop = asyncio.get_running_loop()
    calls = channels(address, 4)
    sent: list[float] = []
    took: list[float | None] = []
    failures: Counter[str] = Counter()
    late: list[float] = []

    async def one(index: int, call: Any) -> None:
        try:
            status = "OK" if await call(request, timeout=30.0) == answer else WRONG
        except grpc.aio.AioRpcError as failure:
            status = f"{failure.code().name}: {failure.details()}"
        if status == "OK":
            took[index] = loop.time() - start - sent[index]
        else:
            failures[status] += 1

    for call in calls:
        await call(request, timeout=30.0)  # connected before the clock starts
    start = loop.time()
    async with asyncio.TaskGroup() as group:
        for index, at in enumerate(poisson(rate, seconds, seed)):
            if (pause := start + at - loop.time()) > 0:
                await asyncio.sleep(pause)
            sent.append(loop.time() - start)
            took.append(None)
            late.append(sent[index] - at)
            group.create_task(one(index, calls[index % len(calls)]))
    return {"sent": sent, "took": took, "late": late, "failures": dict(failures)}


def main(arguments: list[str]) -> None:
    """The command."""
    mode, address, request, answer, first, second, third = arguments
    messages = Path(request).read_bytes(), Path(answer).read_bytes()
    if mode == "closed":
        result = asyncio.run(closed(address, *messages, int(first), int(second), float(third)))
    else:
        result = asyncio.run(opened(address, *messages, float(first), float(second), int(third)))
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
