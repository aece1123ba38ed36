"""Questions to the stand's etcd, beside the product: what it holds, what was written, by whose term."""

from __future__ import annotations

from contextlib import aclosing

from penstock import errors
from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.internal.v1.records_pb2 import AssignmentRecord, LeaderRecord, ReplicaRecord


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
    return records.from_json(LeaderRecord, found.value).id if found is not None else ""


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
                terms += [records.from_json(AssignmentRecord, value).term for value in told]
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
    return {records.from_json(ReplicaRecord, item.value).unix_socket for item in found} - {""}
