"""Ten times more models than memory, asked for by Zipf's law: no fault, but what the suite must bear all day."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Final

import yaml

from penstock.errors import PenstockError
from penstock.v1 import models_pb2 as pb
from penstock.wire.client import Peer
from tests.fault.ledger import OK
from tests.fault.load import outcome, request
from tests.fault.result import Result, Scenario
from tests.fault.stand import GATEWAYS, SCHEDULERS, WORKERS, Dress, Stand
from tests.harness import models

SIZE: Final = 256 << 20
"""Bytes that each model says it needs, the one of the stand's load too."""
ROOM: Final = len(WORKERS)
"""Models that find a place at a time, one on each worker."""
MANY: Final = 10 * ROOM
STEADY: Final = "m00"
"""The one that somebody asks for all the time."""
CALLERS: Final = 4
CROWD: Final = 10
"""Requests in a row for a model: who calls one goes on with it for a while."""
SECONDS, LONG = 15.0, 120.0
DEADLINE: Final = 60.0
DRESS: Final = Dress(
    flags=dict.fromkeys(WORKERS, (f"--memory-bytes={2 * SIZE}",)),
    manifest={"resources": {"memory_bytes": SIZE}},
    # By which a version stays for a moment where it stays for half a minute: so many come and go.
    modules={"services.scheduler": "tests.harness.hasty_scheduler"},
)


def many_models(stand: Stand) -> Result:
    """10 times more models than memory."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder, stand.apart(DRESS) as own:
        names = [f"m{number:02}" for number in range(MANY)]
        for name in names:
            own.client.publish(_model(Path(folder) / name, name))
            own.client.deploy(name, scaling=pb.Scaling(max_replicas=1))
        with own.load() as load:
            ends, took, (cold, waited) = asyncio.run(_callers(own, names, LONG if own.thorough else SECONDS))
        loads, gone = _seen(own, "ready"), _seen(own, "draining")
        evicted = sum(own.metric(name, "penstock_scheduler_evictions_total") for name in SCHEDULERS)
    result.take(load.ledger)
    asked = len(took)
    result.measured |= {"models": MANY, "room for": ROOM, "asked": asked, "hit rate": round(1 - cold / asked, 3)}
    result.measured |= {"hit p50 ms": round(sorted(took)[len(took) // 2] * 1e3, 1)}
    result.measured |= {"cold hit mean s": round(waited / cold, 2), "cold hit at most s": round(max(took), 2)}
    result.measured |= {"loads": loads.total(), "evictions": int(evicted)}
    result.must(set(ends) == {OK}, f"callers were told {dict(ends)}")
    result.must(evicted >= ROOM, f"only {evicted:g} evictions: hardly anything had to make room")
    result.must(loads[STEADY] == 1 and not gone[STEADY], "what was in use all the time was unloaded")
    result.must(loads.total() - gone.total() <= ROOM, "more is loaded than there is room for")
    return result


def _model(folder: Path, name: str) -> Path:
    manifest = models.add_one(folder, name) / "model.yaml"
    content = yaml.safe_load(manifest.read_text())
    content["resources"] = {"memory_bytes": SIZE}
    manifest.write_text(yaml.safe_dump(content))
    return folder


async def _callers(
    stand: Stand, names: list[str], seconds: float
) -> tuple[Counter[str], list[float], tuple[int, float]]:
    """How every request ended; how long those took that were drawn, seconds; how many of these waited, and how long."""
    ends: Counter[str] = Counter()
    took: list[float] = []
    peers, numbers = [Peer(stand.address(gateway)) for gateway in GATEWAYS], itertools.count()
    chance = random.Random(stand.seed)
    others = [name for name in names if name != STEADY]
    weights = [1 / (rank + 1) for rank in range(len(others))]

    async def ask(name: str) -> float:
        number, began = next(numbers), time.monotonic()
        message, deadline = request(name, number), asyncio.get_running_loop().time() + DEADLINE
        try:
            answer = await peers[number % len(peers)].unary("ModelInfer", message, deadline=deadline, headers={})
        except PenstockError as problem:
            ends[outcome(number, None, problem)] += 1
        else:
            ends[outcome(number, answer, None)] += 1
        return time.monotonic() - began

    async def call(end: float) -> None:
        while time.monotonic() < end:
            (name,) = chance.choices(others, weights)
            for _ in range(CROWD):
                took.append(await ask(name))

    async def keep() -> None:
        while True:
            await ask(STEADY)
            await asyncio.sleep(0.1)  # the interval of asking, not a guess

    try:
        await ask(STEADY)  # loads it
        keeping, before = asyncio.create_task(keep()), _waited(stand)
        await asyncio.gather(*(call(time.monotonic() + seconds) for _ in range(CALLERS)))
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        after = _waited(stand)
        return ends, took, (after[0] - before[0], after[1] - before[1])
    finally:
        for peer in peers:
            await peer.close()


def _waited(stand: Stand) -> tuple[int, float]:
    """Requests that waited at a gateway for their model and got it, and their seconds together."""
    count, seconds = 0.0, 0.0
    for gateway in GATEWAYS:
        port = stand.suite.ports[f"{gateway.replace('-', '_')}_admin"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = dict(re.findall(r'^penstock_gateway_waited_seconds_(count|sum)\{end="went"\} (\S+)$', text, re.M))
        count, seconds = count + float(found.get("count", 0)), seconds + float(found.get("sum", 0))
    return int(count), seconds


def _seen(stand: Stand, state: str) -> Counter[str]:
    """How often a replica of each model, but that of the load, came to a state."""
    seen: Counter[str] = Counter()
    for worker in WORKERS:
        for line in (stand.suite.state / "logs" / f"{worker}.log").read_text(errors="replace").splitlines():
            if '"replica_state"' in line:
                told = json.loads(line)
                seen[told["model"]] += told.get("state") == state and told["model"].startswith("m")
    return seen


SCENARIOS = (
    Scenario(
        "density",
        "many-models",
        f"{MANY} models by Zipf's law where there is room for {ROOM}, for {SECONDS:g} s, thorough {LONG:g} s",
        "failed 0, what is in use stays, no more loaded than there is room for",
        many_models,
    ),
)
