"""The etcd client against a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Compacted, Delete, LeaseGone, Put, Rewound, absent, created, modified
from penstock.errors import Unavailable
from penstock.internal.etcd import rpc_pb2 as pb
from tests.harness.etcd import EtcdProcess, free_port


async def test_get_put_delete(store: Etcd) -> None:
    assert await store.get("/penstock/a") is None
    revision = await store.put("/penstock/a", b"1")
    found = await store.get("/penstock/a")
    assert found is not None
    assert (found.key, found.value, found.create_revision, found.mod_revision) == (
        "/penstock/a",
        b"1",
        revision,
        revision,
    )
    assert await store.delete("/penstock/a") is True
    assert await store.delete("/penstock/a") is False


async def test_range_gives_the_prefix_alone_in_order(store: Etcd) -> None:
    for key in ("/penstock/x/b", "/penstock/x/a", "/penstock/x", "/penstock/y"):
        await store.put(key, key.encode())
    found = await store.range("/penstock/x/")
    assert [item.key for item in found.items] == ["/penstock/x/a", "/penstock/x/b"]
    assert found.revision == await store.put("/penstock/z", b"") - 1


async def test_transactions_compare(store: Etcd) -> None:
    first = await store.txn([absent("/penstock/a")], [Put("/penstock/a", b"1")])
    assert first.succeeded
    assert not (await store.txn([absent("/penstock/a")], [Put("/penstock/a", b"2")])).succeeded
    assert (await store.txn([created("/penstock/a", first.revision)], [Put("/penstock/a", b"3")])).succeeded
    assert not (await store.txn([modified("/penstock/a", first.revision)], [Delete("/penstock/a")])).succeeded
    assert not (await store.txn([created("/penstock/a", 1)], [], [Put("/penstock/b", b"else")])).succeeded
    assert await store.get("/penstock/b") is not None


async def test_a_lease_takes_its_keys_along(store: Etcd) -> None:
    lease = await store.grant(5)
    await store.put("/penstock/a", b"1", lease=lease)
    assert 4 <= (await store.keepalive(lease)).ttl <= 5
    await store.revoke(lease)
    assert await store.get("/penstock/a") is None
    assert (await store.keepalive(lease)).ttl == 0
    await store.revoke(lease)
    with pytest.raises(LeaseGone):
        await store.put("/penstock/a", b"1", lease=lease)
    with pytest.raises(LeaseGone):
        await store.txn([], [Put("/penstock/a", b"1", lease)])


async def test_watch_tells_everything_in_order(store: Etcd) -> None:
    revision = await store.put("/penstock/w/0", b"")
    seen: list[tuple[str, bytes | None]] = []
    async with aclosing(store.watch("/penstock/w/", revision + 1)) as stream:
        assert (await anext(stream)).events == ()
        await store.txn([], [Put("/penstock/w/1", b"1"), Put("/penstock/w/2", b"2")])
        await store.delete("/penstock/w/1")
        await store.put("/penstock/elsewhere", b"")
        end = await store.put("/penstock/w/3", b"3")
        async for changes in stream:
            seen += [(event.key, event.value) for event in changes.events]
            if changes.revision == end:
                break
    expected = [("/penstock/w/1", b"1"), ("/penstock/w/2", b"2"), ("/penstock/w/1", None), ("/penstock/w/3", b"3")]
    assert seen == expected


async def test_watch_from_a_compacted_revision(store: Etcd) -> None:
    first = await store.put("/penstock/w", b"1")
    last = await store.put("/penstock/w", b"2")
    await store.compact(last)
    with pytest.raises(Compacted):
        async with aclosing(store.watch("/penstock/w", first)) as stream:
            async for _ in stream:
                pass


async def test_watch_from_a_revision_of_the_future(store: Etcd) -> None:
    last = await store.put("/penstock/w", b"1")
    with pytest.raises(Rewound):
        async with aclosing(store.watch("/penstock/w", last + 1000)) as stream:
            async for _ in stream:
                pass


async def test_a_silent_member_breaks_the_watch(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint], timeout=1.5, heartbeat=0.5)
    async with aclosing(store.watch("/penstock/", 1)) as stream:
        await anext(stream)
        await anext(stream)
        etcd.freeze()
        with pytest.raises(Unavailable):
            async with asyncio.timeout(30):
                while True:
                    await anext(stream)
    etcd.thaw()
    await store.close()


async def test_a_call_that_grpc_cancels_by_itself_is_a_broken_watch(
    store: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc.aio does so when it cannot write; a bare CancelledError would end the reading task in silence."""

    async def failing(prefix: str, start_revision: int) -> AsyncIterator[pb.WatchRequest]:
        async for request in Etcd._watch_requests(store, prefix, start_revision):
            yield request
            raise RuntimeError

    monkeypatch.setattr(store, "_watch_requests", failing)
    with pytest.raises(Unavailable):
        async with asyncio.timeout(30), aclosing(store.watch("/penstock/", 1)) as stream:
            async for _ in stream:
                pass


async def test_cancelling_the_reader_of_a_watch_is_cancellation(store: Etcd) -> None:
    standing = asyncio.Event()

    async def read() -> None:
        async with aclosing(store.watch("/penstock/", 1)) as stream:
            async for _ in stream:
                standing.set()

    task = asyncio.ensure_future(read())
    await standing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_reads_go_to_another_endpoint_at_once_and_writes_at_the_next_try(clean_etcd: str) -> None:
    store = Etcd([f"127.0.0.1:{free_port()}", clean_etcd])
    assert await store.get("/penstock/a") is None
    await store.put("/penstock/a", b"1")
    await store.close()

    store = Etcd([f"127.0.0.1:{free_port()}", clean_etcd])
    with pytest.raises(Unavailable):
        await store.put("/penstock/a", b"2")
    await store.put("/penstock/a", b"3")
    assert (await store.grant(5)) > 0
    await store.close()


async def test_nobody_there_is_unavailable_within_the_timeout() -> None:
    store = Etcd([f"127.0.0.1:{free_port()}"], timeout=0.5)
    with pytest.raises(Unavailable) as caught:
        async with asyncio.timeout(30):
            await store.get("/penstock/a")
    assert "127.0.0.1" not in caught.value.message
    await store.close()
