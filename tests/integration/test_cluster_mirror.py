"""Mirrors of a real etcd that breaks, forgets and loses its data."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import AsyncMock

import grpc
import pytest

from penstock.cluster import Mirror, keys, records
from penstock.cluster import etcd as client
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Delete, Put
from penstock.cluster.watch import RESYNC
from penstock.internal.etcd import rpc_pb2 as pb
from penstock.internal.etcd import rpc_pb2_grpc as rpc
from penstock.internal.v1.records_pb2 import WorkerRecord
from tests.harness.etcd import EtcdProcess
from tests.harness.waiting import Changed


def worker(name: str, memory: int = 1) -> tuple[str, bytes]:
    return keys.worker(name), records.to_json(WorkerRecord(id=name, memory_bytes=memory))


@asynccontextmanager
async def mirrored(store: Etcd, *, resync: float = RESYNC) -> AsyncIterator[tuple[Mirror[WorkerRecord], Changed]]:
    changed = Changed()
    mirror = Mirror(store, keys.WORKERS, WorkerRecord, changed, resync=resync)
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
    return lambda kv: kv.Put(pb.PutRequest(key=key.encode(), value=value), timeout=20, wait_for_ready=True)


def delete(name: str) -> Callable[[rpc.KVStub], object]:
    request = pb.DeleteRangeRequest(key=keys.worker(name).encode())
    return lambda kv: kv.DeleteRange(request, timeout=20, wait_for_ready=True)


def compact(kv: rpc.KVStub) -> object:
    head = kv.Range(pb.RangeRequest(key=b"x"), timeout=20, wait_for_ready=True).header.revision
    return kv.Compact(pb.CompactionRequest(revision=head, physical=True), timeout=20)


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


async def shows(follower: asyncio.subprocess.Process, wanted: dict[str, int]) -> None:
    """Reads what the follower prints until it shows that."""
    assert follower.stdout is not None
    async with asyncio.timeout(30):
        while line := await follower.stdout.readline():
            if json.loads(line) == wanted:
                return
    raise AssertionError("the follower has ended")


async def test_a_stopped_process_wakes_up_past_a_compaction_with_nothing_stale(etcd: EtcdProcess) -> None:
    """Its watch is standing, and far behind: more has happened than etcd and the connection hold for it."""
    store = Etcd([etcd.endpoint])
    await store.put(*worker("worker-1"))
    await store.put(*worker("worker-2"))
    arguments = [sys.executable, "-m", "tests.harness.follower", etcd.endpoint]
    follower = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    try:
        await shows(follower, {"worker-1": 1, "worker-2": 1})
        # The watch stands.
        await store.put(*worker("worker-2", 2))
        await shows(follower, {"worker-1": 1, "worker-2": 2})
        follower.send_signal(signal.SIGSTOP)
        await store.delete(keys.worker("worker-1"))
        missing = {f"engine-{number}": "x" * 100 for number in range(200)}
        for memory in range(3, 203):
            record = WorkerRecord(id="worker-3", memory_bytes=memory, missing_engines=missing)
            last = await store.put(keys.worker("worker-3"), records.to_json(record))
        await store.delete(keys.worker("worker-2"))
        await store.compact(last + 1)
        follower.send_signal(signal.SIGCONT)
        await shows(follower, {"worker-3": 202})
        await store.put(*worker("worker-4", 4))
        await shows(follower, {"worker-3": 202, "worker-4": 4})
    finally:
        follower.kill()
        await follower.wait()
    await store.close()


@pytest.mark.parametrize("grown", [0, 20])
async def test_a_store_restored_from_an_older_snapshot_is_noticed(
    etcd: EtcdProcess, tmp_path: Path, grown: int
) -> None:
    """Also when it has grown past what we knew before we look again. What was deleted since is there again."""
    store = Etcd([etcd.endpoint])
    await store.put(*worker("worker-1"))
    await store.put(*worker("worker-2"))
    await asyncio.to_thread(etcd.ctl, "snapshot", "save", str(tmp_path / "snapshot"))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-1", 7))
        await store.delete(keys.worker("worker-2"))
        await store.put(*worker("worker-3"))
        await changed.until(lambda: seen(mirror) == {"worker-1": 7, "worker-3": 1})
        etcd.restore(tmp_path / "snapshot")
        while_this_process_stands_still(etcd.endpoint, *[put("worker-4", n) for n in range(grown)])
        expected = {"worker-1": 1, "worker-2": 1} | ({"worker-4": grown - 1} if grown else {})
        await changed.until(lambda: seen(mirror) == expected)
        assert mirror.rewinds == 1
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-5", 5))
        await changed.until(lambda: seen(mirror) == expected | {"worker-5": 5})
    await store.close()


async def test_a_large_prefix_is_read_in_pages(store: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE", 7)
    for count in (0, 6, 7, 8, 15):
        for number in range(count):
            await store.put(*worker(f"worker-{number}", number))
        found = await store.range(keys.WORKERS)
        assert sorted(item.key for item in found.items) == sorted(keys.worker(f"worker-{n}") for n in range(count))
    async with mirrored(store) as (mirror, _):
        assert seen(mirror) == {f"worker-{number}": number for number in range(15)}


async def test_a_strangers_keys_are_passed_over(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint])
    await store.put(*worker("worker-1"))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        strange = [b"a/b", b"", b"\xff\xfe", b"x" * 5000]

        def intrude(kv: rpc.KVStub) -> None:
            for name in strange:
                kv.Put(pb.PutRequest(key=keys.WORKERS.encode() + name, value=b"{}"), timeout=20)

        while_this_process_stands_still(etcd.endpoint, intrude)
        await store.put(*worker("worker-2"))
        await changed.until(lambda: seen(mirror) == {"worker-1": 1, "worker-2": 1})
        await mirror.refresh()
        assert seen(mirror) == {"worker-1": 1, "worker-2": 1} and mirror.rewinds == 0
    # Whoever owns the prefix can name them and take them away.
    for item in (await store.range(keys.WORKERS)).items:
        assert await store.delete(item.key)
    assert not (await store.range(keys.WORKERS)).items
    await store.close()


async def test_a_single_key_is_not_a_prefix(store: Etcd) -> None:
    """The mirror of worker-1's orders is not one of worker-10's too."""
    changed = Changed()
    mirror = Mirror(store, keys.worker("worker-1"), WorkerRecord, changed)
    await store.put(*worker("worker-10"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-11"))
        await store.put(*worker("worker-1"))
        await changed.until(lambda: seen(mirror) == {"worker-1": 1})
        await mirror.refresh()
        assert seen(mirror) == {"worker-1": 1}
        task.cancel()


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
    store = Etcd([etcd.endpoint], timeout=1.5, heartbeat=0.5)
    await store.put(*worker("worker-1"))
    async with mirrored(store) as (mirror, changed):
        await changed.until(lambda: mirror.connected)
        etcd.freeze()
        await changed.until(lambda: not mirror.connected)
        assert seen(mirror) == {"worker-1": 1}
        etcd.thaw()
        await changed.until(lambda: mirror.connected)
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
        await changed.until(lambda: seen(mirror) == {"worker-1": 1})
        assert mirror.connected
    await quick.close()


async def test_whoever_follows_the_changes_knows_the_records_through_breaks_and_an_emptied_store(
    etcd: EtcdProcess,
) -> None:
    store, changed = Etcd([etcd.endpoint]), Changed()
    followed: dict[str, WorkerRecord] = {}

    def follow(before: WorkerRecord | None, now: WorkerRecord | None) -> None:
        if before is not None:
            assert followed.pop(before.id) == before
        if now is not None:
            followed[now.id] = now

    mirror = Mirror(store, keys.WORKERS, WorkerRecord, changed, on_record=follow)
    await store.put(*worker("worker-1"))
    await store.put(*worker("worker-2"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-1", 5))
        await store.put(keys.worker("worker-2"), b"{not json")
        await store.put(*worker("worker-3"))
        await changed.until(lambda: "worker-3" in seen(mirror))
        assert {record.id: record.memory_bytes for record in followed.values()} == seen(mirror)
        await asyncio.to_thread(etcd.wipe)
        await changed.until(lambda: mirror.rewinds)
        assert followed == {} == seen(mirror)
        task.cancel()
    await store.close()


async def test_own_writes_are_known_at_once_and_older_news_do_not_undo_them(
    store: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = Changed()
    mirror = Mirror(store, keys.WORKERS, WorkerRecord, changed)
    await mirror.refresh()
    (key, value), stale = worker("worker-1"), [await store.range(keys.WORKERS)]
    message = {key: WorkerRecord(id="worker-1", memory_bytes=1)}
    mirror.wrote([Put(key, value), Put(keys.service("gateway", "g"), b"{}")], await store.put(key, value), message)
    assert seen(mirror) == {"worker-1": 1}
    stale.append(await store.range(keys.WORKERS))
    await store.delete(key)
    mirror.wrote([Delete(key)], (await store.range(keys.WORKERS)).revision, {})
    assert seen(mirror) == {}
    fresh = store.range
    for answer in stale:
        monkeypatch.setattr(store, "range", AsyncMock(return_value=answer))
        await mirror.refresh()
        assert seen(mirror) == {} and mirror.rewinds == 0
    monkeypatch.setattr(store, "range", fresh)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(mirror.run())
        await changed.until(lambda: mirror.connected)
        await store.put(*worker("worker-1", 2))
        await changed.until(lambda: seen(mirror) == {"worker-1": 2})
        assert mirror.rewinds == 0
        task.cancel()
