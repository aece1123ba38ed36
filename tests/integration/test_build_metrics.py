"""What the registry counts of its builds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.kit.metrics import REGISTRY
from penstock.v1 import builds_pb2 as pb
from tests.harness.build_service import Registry, running


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running(tmp_path) as made:
        await made.publish()
        yield made


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Since:
    """How much a counter has grown since now; the process's counters know of other tests too."""

    def __init__(self, name: str, **labels: str) -> None:
        self._name, self._labels = name, labels
        self._before = value(name, **labels)

    @property
    def grown(self) -> float:
        return value(self._name, **self._labels) - self._before


async def until(since: Since, wanted: float) -> None:
    """It is counted a moment after callers can see it."""
    async with asyncio.timeout(30):
        while since.grown < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert since.grown == wanted


async def queue(**states: int) -> None:
    """It is told at every turn of the runner."""
    async with asyncio.timeout(30):
        while {state: value("penstock_registry_builds", state=state) for state in states} != states:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_steps_and_builds_by_how_they_ended(registry: Registry) -> None:
    ended = {
        outcome: Since("penstock_registry_builds_ended_total", outcome=outcome)
        for outcome in ("succeeded", "gate_failed", "failed", "cancelled")
    }
    appended = {
        outcome: Since("penstock_registry_build_steps_total", step="append", outcome=outcome)
        for outcome in ("made", "found", "failed")
    }
    timed = Since("penstock_registry_build_step_seconds_count", step="append")
    spent = Since("penstock_registry_build_step_seconds_sum", step="append")
    for step in ("append", "append", "refuse"):
        await registry.ended((await registry.build(step)).id)
    await registry.ended((await registry.build("gate", passed=False)).id)
    await until(ended["succeeded"], 2)
    await until(ended["gate_failed"], 1)
    await until(ended["failed"], 1)
    assert {outcome: since.grown for outcome, since in appended.items()} == {"made": 1, "found": 1, "failed": 0}
    assert timed.grown == 1 and spent.grown > 0
    assert ended["cancelled"].grown == 0
    failed = Since("penstock_registry_build_steps_total", step="refuse", outcome="failed")
    await registry.ended((await registry.build("refuse")).id)
    await until(failed, 1)


async def test_what_is_cancelled_counts_once(registry: Registry) -> None:
    cancelled = Since("penstock_registry_builds_ended_total", outcome="cancelled")
    runs, waits = await registry.build("hang"), await registry.build("append")
    await queue(running=1, waiting=1)
    for build in (waits, waits, runs):
        await registry.builds.CancelBuild(pb.CancelBuildRequest(id=build.id))
    await registry.ended(runs.id)
    await until(cancelled, 2)
    await queue(running=0, waiting=0)


async def test_the_cache_by_what_it_holds(registry: Registry) -> None:
    made, _ = await registry.ended((await registry.build("compile")).id)
    plan = made.steps[0].outputs["plan"].size_bytes
    everything = sum(artifact.size_bytes for artifact in made.steps[0].outputs.values())
    async with asyncio.timeout(30):
        while value("penstock_registry_build_cache_bytes", kind="plans") != everything:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert value("penstock_registry_build_cache_bytes", kind="results") == everything >= plan
