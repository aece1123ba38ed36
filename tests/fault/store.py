"""Questions to the stand's etcd, beside the product: what it holds, what was written, by whose term."""

from __future__ import annotations

import time
from contextlib import aclosing

from penstock import errors
from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import NoSpace
from penstock.cluster.records import from_json
from penstock.internal.v1.records_pb2 import (
    AssignmentRecord,
    DeploymentRecord,
    LeaderRecord,
    ReplicaRecord,
    WorkerRecord,
)


async def revision(endpoint: str) -> int:
    store = Etcd([endpoint])
    try:
        return (await store.range(keys.ASSIGNMENTS)).revision
    finally:
        await store.close()


async def compact(endpoint: str) -> None:
    store = Etcd([endpoint])
    try:
        await store.compact((await store.range(keys.PREFIX)).revision)
    finally:
        await store.close()


async def leader(endpoint: str) -> str:
    store = Etcd([endpoint])
    try:
        found = await store.get(keys.LEADER, within=1.0)
    except errors.PenstockError:
        return ""
    finally:
        await store.close()
    return from_json(LeaderRecord, found.value).id if found is not None else ""


async def terms(endpoint: str, start: int) -> list[int]:
    """Terms of the assignments written from that revision to now, in the order of the writes."""
    store = Etcd([endpoint])
    try:
        newest = max((item.mod_revision for item in (await store.range(keys.ASSIGNMENTS)).items), default=0)
        terms: list[int] = []
        if newest < start:
            return terms
        async with aclosing(store.watch(keys.ASSIGNMENTS, start)) as watch:
            async for changes in watch:
                told = [event.value for event in changes.events if event.value is not None]
                terms += [from_json(AssignmentRecord, value).term for value in told]
                if changes.revision >= newest:
                    break
        return terms
    finally:
        await store.close()


async def sockets(endpoint: str, worker: str) -> set[str]:
    store = Etcd([endpoint])
    try:
        found = (await store.range(keys.replicas_of(worker))).items
    finally:
        await store.close()
    return {from_json(ReplicaRecord, item.value).unix_socket for item in found} - {""}


async def removed(endpoint: str, since: int) -> int:
    """How many records of workers were deleted after a revision."""
    etcd = Etcd([endpoint])
    try:
        newest = (await etcd.range(keys.WORKERS)).revision
        gone = 0
        # Something to end the reading with: nothing may have happened at all.
        newest = await etcd.put(f"{keys.WORKERS}mark", b"{}")
        await etcd.delete(f"{keys.WORKERS}mark")
        async with aclosing(etcd.watch(keys.WORKERS, since + 1)) as watch:
            async for changes in watch:
                gone += sum(event.value is None for event in changes.events if event.revision <= newest)
                if changes.revision >= newest:
                    return gone
        return gone
    finally:
        await etcd.close()


async def fill(endpoint: str) -> None:
    """Writes until etcd says that it is full, the same key again and again: its history is what takes the room."""
    etcd = Etcd([endpoint])
    try:
        while True:
            await etcd.put(f"{keys.PREFIX}filling", bytes(1 << 19))
    except NoSpace:
        return
    finally:
        await etcd.close()


async def wanted(endpoint: str, model: str) -> int:
    """Replicas that the store says are wanted of a model, over all versions; 0 without a record."""
    etcd = Etcd([endpoint])
    try:
        found = await etcd.get(keys.deployment(model))
    finally:
        await etcd.close()
    if found is None:
        return 0
    return sum(version.replicas for version in from_json(DeploymentRecord, found.value).versions)


async def registered(endpoint: str) -> set[str]:
    """Ids of workers that are registered."""
    etcd = Etcd([endpoint])
    try:
        found = (await etcd.range(keys.WORKERS)).items
    finally:
        await etcd.close()
    return {from_json(WorkerRecord, item.value).id for item in found}


async def write_seconds(endpoint: str) -> float:
    """How long one write takes."""
    etcd = Etcd([endpoint], timeout=30.0)
    try:
        began = time.monotonic()
        await etcd.put(f"{keys.PREFIX}mark", b"")
        return time.monotonic() - began
    finally:
        await etcd.close()
