"""Three real etcds as one, whose members hang, die and are cut off: nobody stays with a member that cannot help."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from penstock.cluster import Membership, Mirror, keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.lease import Lease
from penstock.errors import Unavailable
from penstock.internal.v1.records_pb2 import WorkerRecord
from tests.harness.etcd import EtcdProcess
from tests.harness.etcd_cluster import EtcdCluster
from tests.harness.waiting import Changed

KEY = keys.worker("worker-1")
RECORD = WorkerRecord(id="worker-1")


def first(cluster: EtcdCluster, member: EtcdProcess) -> list[str]:
    """All endpoints, beginning with that member's."""
    return [member.endpoint, *(other.endpoint for other in cluster.members if other is not member)]


async def written(store: Etcd, key: str, value: bytes) -> int:
    """Writes until it is answered: at most one failure for each member."""
    for _ in store.endpoints[1:]:
        try:
            return await store.put(key, value)
        except Unavailable:
            continue
    return await store.put(key, value)


async def test_members_that_hang_or_are_dead_are_left(etcd_cluster: EtcdCluster) -> None:
    """Reads find another member within one call, a write at the next try, and none goes back to the bad one."""
    bad = next(member for member in etcd_cluster.members if member is not etcd_cluster.leader())
    for harm, mend in ((bad.freeze, bad.thaw), (bad.kill, bad.start)):
        reader = Etcd(first(etcd_cluster, bad), timeout=3)
        writer = Etcd(first(etcd_cluster, bad), timeout=3)
        await writer.put(KEY, b"1")
        await asyncio.to_thread(harm)
        assert await reader.get(KEY) is not None
        await reader.put(KEY, b"2")
        with pytest.raises(Unavailable):
            await writer.put(KEY, b"3")
        await writer.put(KEY, b"3")
        assert (await writer.keepalive(await writer.grant(5))).ttl > 0
        await asyncio.to_thread(mend)
        await reader.close()
        await writer.close()


@pytest.mark.parametrize("harm", ["freeze", "isolate", "kill"])
async def test_mirror_membership_and_lease_outlive_a_leading_member(etcd_cluster: EtcdCluster, harm: str) -> None:
    """The member that everybody talks to, and that leads, is lost in each way. The lease stays, so the record is never
    written anew, and the mirror follows another member."""
    leader = etcd_cluster.leader()
    store = Etcd(first(etcd_cluster, leader), timeout=1.5, heartbeat=0.5)
    changed = Changed()
    mirror = Mirror(store, keys.WORKERS, WorkerRecord, changed)
    # Longer than an election of these members takes, with a member that hangs tried first.
    membership = Membership(store, ttl=12)
    witness = Etcd([member.endpoint for member in etcd_cluster.members if member is not leader], timeout=10)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(mirror.run()), group.create_task(membership.run())]
        await membership.put(KEY, RECORD)
        await changed.until(lambda: mirror.connected and KEY in mirror.records)
        before = await witness.get(KEY)
        harms: dict[str, Callable[[], None]] = {
            "freeze": leader.freeze,
            "kill": leader.kill,
            "isolate": lambda: etcd_cluster.isolate(leader),
        }
        await asyncio.to_thread(harms[harm])
        await changed.until(lambda: not mirror.connected)
        await written(witness, keys.worker("worker-2"), records.to_json(WorkerRecord(id="worker-2")))
        await changed.until(lambda: mirror.connected and keys.worker("worker-2") in mirror.records)
        await membership.put(keys.worker("worker-3"), WorkerRecord(id="worker-3"))
        async with asyncio.timeout(30):
            await membership.settled()
        assert membership.present
        assert await witness.get(KEY) == before
        assert mirror.rewinds == 0
        for task in tasks:
            task.cancel()
    await store.close()
    await witness.close()


async def test_a_member_without_a_leader_says_so_at_once(etcd_cluster: EtcdCluster) -> None:
    """Also for reads that it could answer, and for watches that stand on it."""
    member = etcd_cluster.members[0]
    alone = Etcd([member.endpoint], timeout=60, heartbeat=60)
    both = Etcd(first(etcd_cluster, member), timeout=60)
    lease = Lease(both, 20)
    await lease.take()
    standing = alone.watch("/penstock/", 1)
    await anext(standing)
    etcd_cluster.isolate(member)
    with pytest.raises(Unavailable) as ended:
        async with asyncio.timeout(30):
            await anext(standing)
    assert "no leader" in ended.value.detail
    for call in (alone.get(KEY), alone.put(KEY, b"1")):
        with pytest.raises(Unavailable) as refused:
            async with asyncio.timeout(30):
                await call
        assert "no leader" in refused.value.detail
    with pytest.raises(Unavailable):
        async with asyncio.timeout(30):
            # A stream that ends while grpc.aio writes to it fails in words of grpc.aio's.
            await alone.keepalive(lease.id)
    async with asyncio.timeout(30):
        assert await both.get(KEY) is None
        assert await lease.renew(within=20) is not None
    etcd_cluster.rejoin()
    async with asyncio.timeout(30):
        while True:
            try:
                await alone.put(KEY, b"1")
                break
            except Unavailable:
                await asyncio.sleep(0.05)  # as everybody does who writes: there is no event to wait for
    await alone.close()
    await both.close()
