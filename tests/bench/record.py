"""`python -m tests.bench.record [--seconds 900] [--seed 4]`: records a trace of requests for tests/bench/scaling.py.

People come, send some requests with pauses in between, and leave; how many come swings slowly, and once a crowd comes
within half a minute. The suite serves them, and what is written down is what the gateway has counted each second: the
load is of our own making, but its seconds were measured. One number a line; the first line says how it came about.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import platform
import random
import sys
import tempfile
import urllib.request
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from deploy.local.ports import Ports
from deploy.local.suite import Suite
from penstock.client.aio import AsyncClient
from penstock.errors import PenstockError
from tests.harness import models

TRACES = Path(__file__).resolve().parent / "traces"
REQUESTS = 12
"""That one person sends, on average."""
PAUSE = 2.0
"""Seconds between two of them, on average."""
CROWD = 0.6
"""When the crowd comes, as a part of the whole."""


def coming(second: float, seconds: int) -> float:
    """People a second."""
    slow = 3.0 - 2.0 * math.cos(4 * math.pi * second / seconds)
    return slow + (8.0 if 0 <= second - CROWD * seconds < 30 else 0.0)


async def person(client: AsyncClient, luck: random.Random) -> None:
    """One visit."""
    x = np.zeros((1, 16), np.float32)
    while True:
        with suppress(PenstockError):
            await client.infer("add1", {"x": x})
        if luck.random() < 1 / REQUESTS:
            return
        await asyncio.sleep(luck.expovariate(1 / PAUSE))


async def people(client: AsyncClient, seconds: int, luck: random.Random) -> None:
    """All of them."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    async with asyncio.TaskGroup() as group:
        while (now := clock() - begun) < seconds:
            group.create_task(person(client, luck))
            await asyncio.sleep(luck.expovariate(coming(now, seconds)))


def counted(admin: str) -> float:
    """Requests that the gateway has ended so far."""
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("penstock_gateway_requests_total{"))


async def record(suite: Suite, seconds: int, seed: int) -> list[int]:
    """Requests that ended in each second."""
    admin = f"127.0.0.1:{suite.ports['gateway_admin']}"
    async with AsyncClient(f"127.0.0.1:{suite.ports['gateway_grpc']}", timeout=30) as client:
        version = await client.publish(models.add_one(suite.state / "add1"))
        await client.deploy(version.name, version.version, replicas=2, wait=60)
        visits = asyncio.create_task(people(client, seconds, random.Random(seed)))
        clock = asyncio.get_running_loop().time
        begun, found = clock(), [await asyncio.to_thread(counted, admin)]
        for second in range(1, seconds + 1):
            await asyncio.sleep(max(begun + second - clock(), 0))
            found.append(await asyncio.to_thread(counted, admin))
        visits.cancel()
        with suppress(asyncio.CancelledError):
            await visits
    return [int(after - before) for before, after in pairwise(found)]


def read(name: str) -> list[float]:
    """A recorded trace: requests in each second."""
    lines = (TRACES / f"{name}.txt").read_text().splitlines()
    return [float(line) for line in lines if not line.startswith("#")]


def main() -> int:
    """Records, and prints the trace."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.record", description=__doc__)
    parser.add_argument("--seconds", type=int, default=900)
    parser.add_argument("--seed", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(Path(folder), Ports.free(), trace_ratio=None)
        suite.up()
        try:
            found = asyncio.run(record(suite, arguments.seconds, arguments.seed))
        finally:
            suite.down()
    print(
        f"# requests that a gateway ended in each of {arguments.seconds} s, from `python -m tests.bench.record "
        f"--seconds {arguments.seconds} --seed {arguments.seed}`, Python {platform.python_version()}"
    )
    print("\n".join(map(str, found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
