"""The projector against a real etcd: what the database says appears there, whatever stood in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.watch import Mirror
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord, TenantRecord
from penstock.v1 import manifest_pb2, models_pb2, tenants_pb2
from penstock.v1.cluster_pb2 import REPLICA_STATE_LOADING, REPLICA_STATE_READY, ReplicaState
from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore
from services.registry.deployments import Wanted
from services.registry.projector import Projector, Step, step_for
from services.registry.store import NewVersion, Store
from services.registry.tenants.store import TenantStore
from services.registry.threads import Threads
from tests.harness.etcd import EtcdProcess
from tests.harness.waiting import Changed


@dataclass
class Setting:
    """A database, a running projector, and what is seen of it through a mirror of its own."""

    store: Store
    deployments: DeploymentStore
    tenants: TenantStore
    projector: Projector
    etcd: Etcd
    seen: Mirror[DeploymentRecord]
    changed: Changed

    async def deploy(self, version: int, replicas: int = 1, *, keep_others: bool = False) -> models_pb2.Deployment:
        made = await asyncio.to_thread(
            self.deployments.deploy, "digits", version, Wanted(replicas), keep_others=keep_others
        )
        self.projector.note_change()
        return made

    async def until(self, condition: Callable[[DeploymentRecord | None], object]) -> None:
        await self.changed.until(lambda: condition(self.seen.records.get(keys.deployment("digits"))))

    async def replica(self, worker: str, version: int, state: ReplicaState.ValueType | None) -> None:
        key = keys.replica(worker, "digits", version)
        if state is None:
            await self.etcd.delete(key)
        else:
            record = ReplicaRecord(worker=worker, name="digits", version=version, state=state)
            await self.etcd.put(key, records.to_json(record))


def publish(store: Store) -> None:
    manifest = manifest_pb2.Manifest(schema="penstock/v1", name="digits", format="onnx")
    manifest.resources.devices.count = 2
    manifest.instances = 3
    manifest.resources.memory_bytes, manifest.resources.devices.memory_bytes = 10, 5
    manifest.placement.selector["zone"] = "a"
    files = {"model": models_pb2.Artifact(digest="sha256:" + "0" * 64, size_bytes=1)}
    store.publish(NewVersion(manifest, files, "t", seal=lambda number: f"sha256:{number:064x}"))


@asynccontextmanager
async def setting(folder: Path, endpoint: str, *, interval: float = 0.2, projectors: int = 1) -> AsyncIterator[Setting]:
    threads, database = Threads("test", 8), Database(f"sqlite:///{folder}/registry.db")
    await threads.run(database.migrate)
    store, deployments, tenants = Store(database), DeploymentStore(database), TenantStore(database)
    for _ in range(3):
        await threads.run(publish, store)
    etcd, changed = Etcd([endpoint], timeout=5.0), Changed()
    seen = Mirror(etcd, keys.DEPLOYMENTS, DeploymentRecord, changed)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(seen.run())]
        for _ in range(projectors):
            projector = Projector(deployments, tenants, threads, etcd, interval=interval)
            replicas = Mirror(etcd, keys.REPLICAS, ReplicaRecord, projector.note_change)
            tasks += [group.create_task(replicas.run()), group.create_task(projector.run(replicas))]
        yield Setting(store, deployments, tenants, projector, etcd, seen, changed)
        for task in tasks:
            task.cancel()
    await etcd.close()
    await threads.run(database.close)
    threads.close()


@pytest.fixture
async def made(tmp_path: Path, clean_etcd: str) -> AsyncIterator[Setting]:
    async with setting(tmp_path, clean_etcd) as started:
        yield started


async def test_deployments_appear_change_and_go(made: Setting) -> None:
    deployed = await made.deploy(1, 2)
    await made.until(lambda record: record and record.generation == deployed.generation)
    record = made.seen.records[keys.deployment("digits")]
    assert record == made.deployments.read_all()["digits"].record
    (wanted,) = record.versions
    assert (wanted.devices.count, dict(wanted.placement.selector)) == (2, {"zone": "a"})
    # What a manifest says of one instance, as often as a replica has instances.
    assert (wanted.memory_bytes, wanted.devices.memory_bytes) == (30, 15)
    await asyncio.to_thread(made.store.set_alias, "digits", "prod", 1, None)
    made.projector.note_change()
    await made.until(lambda record: record and dict(record.aliases) == {"prod": 1})
    await asyncio.to_thread(made.deployments.undeploy, "digits", 0)
    made.projector.note_change()
    await made.until(lambda record: record is None)


async def test_tenants_appear_change_and_go(made: Setting) -> None:
    changed = Changed()
    seen = Mirror(made.etcd, keys.TENANTS, TenantRecord, changed)
    key = keys.tenant("Fraud-team")

    async def say(rate: float) -> TenantRecord:
        tenant = tenants_pb2.Tenant(name="Fraud-team", models=["fraud-*"], rate=rate, burst=2, concurrent=3)
        await asyncio.to_thread(made.tenants.set, tenant, "boss")
        made.projector.note_change()
        await changed.until(lambda: key in seen.records and seen.records[key].rate == rate, within=20)
        return seen.records[key]

    async def forget() -> None:
        await asyncio.to_thread(made.tenants.delete, "Fraud-team")
        made.projector.note_change()
        await changed.until(lambda: not seen.records, within=20)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(seen.run())
        first = await say(1.0)
        assert first == made.tenants.records()["Fraud-team"]
        assert (first.name, list(first.models), first.burst, first.concurrent) == ("Fraud-team", ["fraud-*"], 2, 3)
        # What somebody else writes is put right; one that was forgotten and is said again is not taken for an old one.
        await made.etcd.put(keys.tenant("ghost"), b"not a record")
        second = await say(2.0)
        assert second.generation > first.generation
        await forget()
        assert (await say(1.0)).generation > second.generation
        await changed.until(lambda: set(seen.records) == {key}, within=20)
        await forget()
        task.cancel()


async def test_what_somebody_else_breaks_is_put_right(made: Setting) -> None:
    await made.deploy(1)
    await made.until(lambda record: record)
    await made.etcd.delete(keys.deployment("digits"))
    await made.etcd.put(keys.deployment("ghost"), records.to_json(DeploymentRecord(name="ghost", generation=99)))
    await made.changed.until(lambda: set(made.seen.records) == {keys.deployment("digits")})
    await made.etcd.put(keys.deployment("digits"), b"not a record")
    await made.until(lambda record: record and record.generation == 1)
    old = DeploymentRecord(name="digits", generation=0, default_version=7)
    await made.etcd.put(keys.deployment("digits"), records.to_json(old))
    await made.until(lambda record: record and record.default_version == 1)


async def test_a_later_generation_is_never_overwritten(made: Setting) -> None:
    later = DeploymentRecord(name="digits", generation=50, default_version=9)
    await made.deploy(1)
    await made.until(lambda record: record and record.generation == 1)
    await made.etcd.put(keys.deployment("digits"), records.to_json(later))
    await made.deploy(2)
    # Deploying something else proves that the projector has looked at all keys since.
    manifest = manifest_pb2.Manifest(schema="penstock/v1", name="other", format="onnx")
    new = NewVersion(manifest, {"model": models_pb2.Artifact(digest="d", size_bytes=1)}, "t", seal=lambda number: "d")
    await asyncio.to_thread(made.store.publish, new)
    await asyncio.to_thread(made.deployments.deploy, "other", 1, Wanted(1), keep_others=False)
    made.projector.note_change()
    await made.changed.until(lambda: keys.deployment("other") in made.seen.records)
    assert made.seen.records[keys.deployment("digits")] == later


async def test_a_version_retires_once_the_new_one_is_complete_and_the_old_replicas_are_gone(made: Setting) -> None:
    await made.deploy(1, 1)
    await made.replica("w1", 1, REPLICA_STATE_READY)
    await made.deploy(2, 2)
    await made.until(lambda record: record and record.default_version == 2)

    def retiring() -> list[int]:
        return [
            number for number, wanted in made.deployments.read_all()["digits"].plan.versions.items() if wanted.retiring
        ]

    await made.replica("w1", 2, REPLICA_STATE_READY)
    await made.replica("w2", 2, REPLICA_STATE_LOADING)
    await made.projector.step(await fresh(made))
    assert retiring() == [1]
    await made.replica("w2", 2, REPLICA_STATE_READY)
    await made.projector.step(await fresh(made))
    assert retiring() == [1]
    await made.replica("w1", 1, None)
    await made.until(lambda record: record and [wanted.version for wanted in record.versions] == [2])
    assert retiring() == []


async def fresh(made: Setting) -> Mirror[ReplicaRecord]:
    """A mirror of replicas that has seen everything written so far, and stands still."""
    changed = Changed()
    mirror = Mirror(made.etcd, keys.REPLICAS, ReplicaRecord, changed)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        await changed.until(lambda: mirror.connected)
        task.cancel()
    return mirror


async def test_deploying_works_while_etcd_is_away_and_appears_when_it_is_back(
    tmp_path: Path, etcd: EtcdProcess
) -> None:
    async with setting(tmp_path, etcd.endpoint) as made:
        await made.deploy(1)
        await made.until(lambda record: record and record.default_version == 1)
        await asyncio.to_thread(etcd.kill)
        await made.deploy(2)
        await made.changed.until(lambda: not made.seen.connected)
        assert made.projector.behind() > 0
        await asyncio.to_thread(etcd.start)
        await made.until(lambda record: record and record.default_version == 2)
        # A store that has lost everything gets everything again.
        await asyncio.to_thread(etcd.wipe)
        await made.changed.until(lambda: made.seen.rewinds)
        await made.until(lambda record: record and record.default_version == 2)


async def test_two_projectors_do_each_other_no_harm(tmp_path: Path, clean_etcd: str) -> None:
    async with setting(tmp_path, clean_etcd, interval=0.005, projectors=2) as made:
        generations = []

        def reached(wanted: int, record: DeploymentRecord | None) -> bool:
            generations.append(record.generation if record else 0)
            return generations[-1] >= wanted

        for turn in range(30):
            deployed = await made.deploy(1 + turn % 3, 1 + turn % 4)
            await made.until(partial(reached, deployed.generation))
        assert generations == sorted(generations)


def test_step_for() -> None:
    def stored(generation: int) -> bytes:
        return records.to_json(DeploymentRecord(name="a", generation=generation))

    wanted = DeploymentRecord(name="a", generation=3)
    assert step_for(None, None) is Step.KEEP
    assert step_for(None, wanted) is Step.WRITE
    assert step_for(stored(2), wanted) is Step.WRITE
    assert step_for(stored(3), wanted) is Step.KEEP
    assert step_for(stored(4), wanted) is Step.NEWER
    assert step_for(stored(4), None) is Step.DELETE
    assert step_for(b"\xff", wanted) is Step.WRITE
