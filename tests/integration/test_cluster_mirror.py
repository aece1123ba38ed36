"""Mirrors of a real etcd that breaks, forgets and loses its data."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc

from penstock.cluster import Mirror, keys, records
from penstock.cluster.etcd import Etcd
from penstock.internal.etcd import rpc_pb2 as pb
from penstock.internal.etcd import rpc_pb2_grpc as rpc
from penstock.internal.v1.records_pb2 import WorkerRecord
from tests.harness.etcd import EtcdProcess
from tests.harness.waiting import Changed


def worker(name: str, memory: int = 1) -> tuple[str, bytes]:
    return keys.worker(name), records.to_json(WorkerRecord(id=name, memory_bytes=memory))


@asynccontextmanager
async def mirrored(store: Etcd, **options: float) -> AsyncIterator[tuple[Mirror[WorkerRecord], Changed]]:
    changed = Changed()
    mirror = Mirror(store, keys.WORKERS, WorkerRecord, changed, **options)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        await mirror.synced()
        yield mirror, changed
        task.cancel()


def seen(mirror: Mirror[WorkerRecord]) -> dict[str, int]:
    return {record.id: record.memory_bytes for record in mirror.records.values()}


def while_this_process_stands_still(endpoint: str, *steps: Callable[[rpc.KVStub], object]) -> None:
    """Blocks the event loop, as SIGSTOP would, while somebody else works on the store."""
    with grpc.insecure_channel(endpoint) as channel:
        for step in steps:
            step(rpc.KVStub(channel))


def put(name: str, memory: int) -> Callable[[rpc.KVStub], object]:
    key, value = worker(name, memory)
    return lambda kv: kv.Put(pb.PutRequest(key=key.encode(), value=value), timeout=5, wait_for_ready=True)


def delete(name: str) -> Callable[[rpc.KVStub], object]:
    request = pb.DeleteRangeRequest(key=keys.worker(name).encode())
    return lambda kv: kv.DeleteRange(request, timeout=5, wait_for_ready=True)


def compact(kv: rpc.KVStub) -> object:
    head = kv.Range(pb.RangeRequest(key=b"x"), timeout=5, wait_for_ready=True).header.revision
    return kv.Compact(pb.CompactionRequest(revision=head, physical=True), timeout=5)


async def test_follows_writes_and_deletes(store: Etcd) -> None:
    await store.put(*worker("worker-1"))
    async with mirrored(store) as (mirror, changed):
        assert seen(mirror) == {"worker-1": 1}
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-2"))
        await store.put(*worker("worker-1", 7))
        await changed.until(lambda: seen(mirror) == {"worker-1": 7, "worker-2": 1})
        await store.delete(keys.worker("worker-1"))
        await changed.until(lambda: seen(mirror) == {"worker-2": 1})
        assert mirror.rewinds == 0


async def test_an_unreadable_record_leaves_the_last_good_one(store: Etcd) -> None:
    await store.put(*worker("worker-1", 3))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        await store.put(keys.worker("worker-1"), b"{not json")
        await store.put(*worker("worker-2"))
        await changed.until(lambda: "worker-2" in seen(mirror))
        assert seen(mirror)["worker-1"] == 3
        await store.put(*worker("worker-1", 4))
        await changed.until(lambda: seen(mirror)["worker-1"] == 4)


async def test_keeps_what_it_knows_while_etcd_is_away_and_catches_up(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint])
    await store.put(*worker("worker-1"))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        await asyncio.to_thread(etcd.kill)
        await changed.until(lambda: not mirror.connected)
        assert seen(mirror) == {"worker-1": 1}
        await asyncio.to_thread(etcd.start)
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-2"))
        await changed.until(lambda: seen(mirror) == {"worker-1": 1, "worker-2": 1})
        assert mirror.rewinds == 0
    await store.close()


async def test_catches_up_after_its_revision_was_compacted_away(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint])
    await store.put(*worker("worker-1"))
    await store.put(*worker("worker-2"))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        etcd.restart()
        steps = [put("worker-3", 1), delete("worker-1"), put("worker-2", 5), compact]
        while_this_process_stands_still(etcd.endpoint, *steps)
        await changed.until(lambda: seen(mirror) == {"worker-2": 5, "worker-3": 1})
        await changed.until(lambda: mirror.connected)
        assert mirror.rewinds == 0
    await store.close()


async def test_an_emptied_store_is_noticed_by_one_who_saw_it_begin_empty(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint])
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-1"))
        await changed.until(lambda: seen(mirror) == {"worker-1": 1})
        await asyncio.to_thread(etcd.wipe)
        await changed.until(lambda: mirror.rewinds == 1)
        assert seen(mirror) == {}
    await store.close()


async def test_an_emptied_store_is_noticed(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint])
    for memory in range(1, 6):
        await store.put(*worker("worker-1", memory))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        await asyncio.to_thread(etcd.wipe)
        await changed.until(lambda: mirror.rewinds == 1)
        assert seen(mirror) == {}
        await store.put(*worker("worker-2"))
        await changed.until(lambda: seen(mirror) == {"worker-2": 1})
    await store.close()


async def test_an_emptied_store_is_noticed_even_when_it_has_grown_past_us(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint])
    await store.put(*worker("worker-1"))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        etcd.wipe()
        while_this_process_stands_still(etcd.endpoint, *[put(f"worker-{n}", n) for n in range(2, 12)])
        await changed.until(lambda: seen(mirror) == {f"worker-{n}": n for n in range(2, 12)})
        assert mirror.rewinds == 1
    await store.close()


async def test_a_frozen_etcd_counts_as_away(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint], timeout=0.5, heartbeat=0.2)
    await store.put(*worker("worker-1"))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        etcd.freeze()
        await changed.until(lambda: not mirror.connected, within=5)
        assert seen(mirror) == {"worker-1": 1}
        etcd.thaw()
        await changed.until(lambda: mirror.connected, within=5)
    await store.close()


async def test_refresh_shows_all_that_was_written_before(store: Etcd) -> None:
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        for memory in range(1, 50):
            revision = await store.put(*worker("worker-1", memory))
            await mirror.refresh()
            assert seen(mirror) == {"worker-1": memory}
            assert mirror.revision >= revision
        created = mirror.create_revision(keys.worker("worker-1"))
        assert created == revision - 48
        await store.delete(keys.worker("worker-1"))
        await mirror.refresh()
        assert seen(mirror) == {} and mirror.create_revision(keys.worker("worker-1")) == 0
        assert mirror.rewinds == 0


async def test_reads_everything_again_now_and_then(store: Etcd) -> None:
    """A lost event is made good: here the mirror is made to forget a record behind etcd's back."""
    quick = Etcd([store.endpoints[0]], heartbeat=0.1)
    await store.put(*worker("worker-1"))
    async with mirrored(quick, resync=0.3) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        mirror._drop(keys.worker("worker-1"))
        await changed.until(lambda: seen(mirror) == {"worker-1": 1}, within=3)
        assert mirror.connected
    await quick.close()
