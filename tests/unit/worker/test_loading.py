"""Threads and nodes of the engines that a worker starts."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from penstock.v1 import manifest_pb2 as pb
from services.worker import loading
from services.worker.engines.engine import NOTHING
from services.worker.loading import Loader, Machine


class Started:
    """Stands for EngineHost: notes how each is started. gate: one permit for each start that may end."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, frozenset[int]]] = []
        self.gate = asyncio.Semaphore(0)
        self.alive = True

    async def start(self, *positional: Any, threads: int, processors: frozenset[int], **named: Any) -> Started:
        self.asked.append((threads, processors))
        await self.gate.acquire()
        host = Started()
        return host


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    made = Started()
    monkeypatch.setattr(loading, "EngineHost", made)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    return made


async def starts(loader: Loader, started: Started, manifest: pb.Manifest, count: int) -> None:
    tasks = [asyncio.ensure_future(loader.start(manifest, {})) for _ in range(count)]
    for _ in range(count):
        started.gate.release()
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("instances", "configured", "said", "each"), [(0, 0, 0, 4), (2, 0, 0, 2), (16, 0, 0, 1), (2, 6, 0, 3), (2, 6, 5, 3)]
)
async def test_instances_divide_the_threads_of_one_engine(
    started: Started, instances: int, configured: int, said: int, each: int
) -> None:
    loader = Loader(threads=configured, load_timeout=1.0, means=NOTHING, machine=Machine())
    # What the manifest says counts for each: EngineHost puts it over what it is given.
    manifest = pb.Manifest(instances=instances, resources=pb.Resources(threads=said))
    await starts(loader, started, manifest, 1)
    assert [threads for threads, _ in started.asked] == [each]


async def test_engines_that_load_side_by_side_go_to_different_nodes(started: Started) -> None:
    nodes = {0: frozenset({0, 1, 2, 3}), 1: frozenset({4, 5, 6, 7})}
    loader = Loader(threads=4, load_timeout=1.0, means=NOTHING, machine=Machine(nodes=nodes))
    await starts(loader, started, pb.Manifest(instances=4), 4)
    assert [processors for _, processors in started.asked] == [nodes[0], nodes[1], nodes[0], nodes[1]]
    started.asked.clear()
    await starts(loader, started, pb.Manifest(instances=2), 2)
    assert {processors for _, processors in started.asked} == set(nodes.values())
