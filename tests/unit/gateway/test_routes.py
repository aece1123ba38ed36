"""The table follows the mirrors, model by model, and is swapped as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from penstock.errors import NotFound, Unavailable
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord
from services.gateway.routes import RoutingTable
from tests.unit.gateway.doubles import FakeMirror
from tests.unit.gateway.records import DRAINING, LOADING, deployment, keyed, replica


class Followed:
    """A table that follows two fake mirrors."""

    def __init__(self) -> None:
        self.now = 0.0
        self.routes = RoutingTable(clock=lambda: self.now)
        self.deployments: FakeMirror[DeploymentRecord] = FakeMirror()
        self.replicas: FakeMirror[ReplicaRecord] = FakeMirror()

    async def change(self) -> None:
        """Tells the table of a change and waits for the swap."""
        news = self.routes.news
        self.routes.note_change()
        async with asyncio.timeout(30):
            await news.wait()


@asynccontextmanager
async def followed(*records: ReplicaRecord) -> AsyncIterator[Followed]:
    it = Followed()
    it.deployments.records = {"digits": deployment("digits", 1)}
    it.replicas.records = keyed(*records)
    async with asyncio.TaskGroup() as group:
        news = it.routes.news
        task = group.create_task(it.routes.run(it.deployments, it.replicas))
        await news.wait()
        yield it
        task.cancel()


async def test_not_ready_before_the_first_read() -> None:
    assert RoutingTable().ready() == "the routing table has not been read yet"
    async with followed(replica("w1")) as it:
        assert it.routes.ready() is None


async def test_nothing_is_missing_before_the_first_read() -> None:
    with pytest.raises(Unavailable, match="has not been read yet"):
        RoutingTable().resolve("digits", "")
    async with followed(replica("w1")) as it:
        with pytest.raises(NotFound):
            it.routes.resolve("letters", "")


async def test_a_replica_that_becomes_ready_and_leaves() -> None:
    async with followed(replica("w1", LOADING)) as it:
        with pytest.raises(Unavailable, match="loading"):
            it.routes.resolve("digits", "")
        it.replicas.records = keyed(replica("w1"))
        await it.change()
        assert it.routes.resolve("digits", "").replicas[0].address == "w1:1"
        it.replicas.records = keyed(replica("w1", DRAINING))
        await it.change()
        with pytest.raises(Unavailable, match="unloaded"):
            it.routes.resolve("digits", "")


async def test_deployments_come_and_go() -> None:
    async with followed(replica("w1")) as it:
        it.deployments.records = {"other": deployment("other", 1)}
        await it.change()
        with pytest.raises(NotFound):
            it.routes.resolve("digits", "")
        with pytest.raises(Unavailable):
            it.routes.resolve("other", "")


async def test_only_the_changed_model_is_built_again() -> None:
    async with followed(replica("w1")) as it:
        digits = it.routes.table.models["digits"]
        before = it.routes.table
        it.deployments.records = {**it.deployments.records, "other": deployment("other", 1)}
        await it.change()
        assert it.routes.table is not before
        assert it.routes.table.models["digits"] is digits
        assert set(before.models) == {"digits"}


async def test_equal_records_swap_nothing() -> None:
    async with followed(replica("w1")) as it:
        before = it.routes.table
        it.replicas.records = keyed(replica("w1"))  # another message, the same content
        it.routes.rebuild(it.deployments, it.replicas)
        assert it.routes.table is before


async def test_mass_disappearance_is_held_until_a_connection_fails() -> None:
    async with followed(replica("w1"), replica("w2")) as it:
        it.replicas.records = {}
        it.routes.rebuild(it.deployments, it.replicas)
        assert {each.worker for each in it.routes.resolve("digits", "").replicas} == {"w1", "w2"}
        assert it.routes.held == 2
        assert it.routes.held_addresses == {"w1:1", "w2:1"}
        news = it.routes.news
        it.routes.disprove("w1:1")
        async with asyncio.timeout(30):
            await news.wait()
        assert [each.worker for each in it.routes.resolve("digits", "").replicas] == ["w2"]


async def test_a_rewound_store_loses_nothing() -> None:
    async with followed(replica("w1")) as it:
        it.replicas.records, it.replicas.rewinds = {}, 1
        it.deployments.records, it.deployments.rewinds = {}, 1
        it.routes.rebuild(it.deployments, it.replicas)
        assert it.routes.resolve("digits", "1").replicas[0].address == "w1:1"
