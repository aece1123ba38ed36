"""Elections over a real etcd: at no time may two terms write."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest

from penstock.cluster import Election, Etcd, Term, TermOver, keys, records
from penstock.cluster.kv import TxnResult
from penstock.errors import Unavailable
from penstock.internal.v1.records_pb2 import LeaderRecord
from tests.harness.candidate import LEDGER, write_ledger
from tests.harness.etcd import EtcdProcess


def election(store: Etcd, name: str, ttl: float = 20.0) -> Election:
    return Election(store, LeaderRecord(id=name, address="127.0.0.1:1"), ttl)


@asynccontextmanager
async def candidate(endpoint: str, name: str, ttl: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """A candidate in a process of its own that leads already."""
    arguments = [sys.executable, "-m", "tests.harness.candidate", endpoint, name, str(ttl)]
    process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(30):
            await leading(process)
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
            process.send_signal(signal.SIGCONT)
        await process.wait()


async def leading(process: asyncio.subprocess.Process) -> int:
    """The next term that the process says it leads."""
    assert process.stdout is not None
    while line := await process.stdout.readline():
        if line.startswith(b"leading"):
            return int(line.split()[1])
    raise AssertionError("the candidate has ended")


async def ledger(store: Etcd, since: int) -> list[int]:
    """The terms of all writes of the ledger from that revision on, in the store's order."""
    end = await store.put(LEDGER, b"0 end")
    terms: list[int] = []
    async with aclosing(store.watch(LEDGER, since)) as stream:
        async for changes in stream:
            terms += [int(event.value.split()[0]) for event in changes.events if event.value]
            if changes.revision >= end:
                return terms[:-1]
    raise AssertionError("the watch ended")


async def test_a_clean_handover_is_immediate(store: Etcd) -> None:
    terms: list[int] = []
    resigned = asyncio.Event()
    leads = asyncio.Event()

    async def first() -> None:
        async with election(store, "a", ttl=100).lead() as term:
            terms.append(term.number)
            leads.set()
            await resigned.wait()

    async def second() -> None:
        await leads.wait()
        async with election(store, "b", ttl=100).lead() as term:
            terms.append(term.number)
            found = await store.get(keys.LEADER)
            assert found is not None and found.create_revision == term.number
            assert records.from_json(LeaderRecord, found.value).id == "b"

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(first())
        waiting = group.create_task(second())
        await leads.wait()
        assert not (await asyncio.wait([waiting], timeout=0.3))[0]
        resigned.set()
    assert terms == sorted(terms) and len(set(terms)) == 2
    assert await store.get(keys.LEADER) is None


async def test_a_key_won_without_knowing_it_is_given_back(clean_etcd: str) -> None:
    """The answer that made us leader was lost: we find our own key, do not act on it, and stand again."""
    store = Etcd([clean_etcd])
    plain, lost = store.txn, 0

    async def losing(*arguments: Any, **options: Any) -> TxnResult:
        nonlocal lost
        result = await plain(*arguments, **options)
        if not lost:
            lost = result.revision
            raise Unavailable("lost")
        return result

    store.txn = losing  # type: ignore[method-assign]
    async with asyncio.timeout(30), election(store, "a", ttl=60).lead() as term:
        assert term.number > lost > 0
        await term.put("/penstock/x", b"1")
    await store.close()


async def test_an_error_in_the_body_comes_out_as_it_is_and_resigns(store: Etcd) -> None:
    with pytest.raises(ZeroDivisionError):
        async with election(store, "a").lead():
            raise ZeroDivisionError
    assert await store.get(keys.LEADER) is None
    with pytest.raises(TimeoutError):
        async with election(store, "a").lead():
            raise TimeoutError


async def test_cancelling_a_waiting_candidate_leaves_nothing(store: Etcd) -> None:
    async with election(store, "a").lead():
        waiting = asyncio.ensure_future(election(store, "b").lead().__aenter__())
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert await store.get(keys.LEADER) is None


async def test_a_term_lasts_as_long_as_it_is_renewed(store: Etcd) -> None:
    async with election(store, "a", ttl=3).lead() as term:
        await asyncio.sleep(4)  # the subject is time itself
        await term.put("/penstock/x", b"1")
        assert not term.over


async def test_frozen_etcd_ends_the_body_before_the_lease_could_end(etcd: EtcdProcess) -> None:
    store = Etcd([etcd.endpoint])
    loop = asyncio.get_running_loop()
    ttl = 4.0
    frozen = election(store, "a", ttl)
    with pytest.raises(TermOver):
        async with frozen.lead() as term:
            etcd.freeze()
            try:
                await asyncio.Event().wait()
            finally:
                ended = loop.time()
                assert term.over
    assert ended < frozen._lease.expires
    etcd.thaw()
    # Its own old key does not keep it out for longer than the old lease lasts.
    async with asyncio.timeout(30), election(store, "a", ttl).lead() as next_term:
        assert next_term.number > term.number
    await store.close()


async def test_a_deleted_leader_key_ends_the_body(store: Etcd) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(TermOver):
            async with election(store, "a", ttl=3).lead():
                await store.delete(keys.LEADER)
                await asyncio.Event().wait()


async def test_a_stale_terms_write_is_refused_by_clock_and_by_store(store: Etcd) -> None:
    async with election(store, "a").lead() as old:
        await old.put("/penstock/x", b"old")
    with pytest.raises(TermOver):
        await old.put("/penstock/x", b"late")
    async with election(store, "b").lead() as new:
        old.ends = asyncio.get_running_loop().time() + 100  # as if the clock had not stopped it
        with pytest.raises(TermOver):
            await old.put("/penstock/x", b"late")
        with pytest.raises(TermOver):
            await old.delete("/penstock/x")
        assert old.over
        await new.put("/penstock/x", b"new")
    found = await store.get("/penstock/x")
    assert found is not None and found.value == b"new"


async def test_a_term_that_is_over_by_its_own_clock_writes_nothing_though_the_store_would_take_it(store: Etcd) -> None:
    async with election(store, "a").lead() as term:
        term.end()
        with pytest.raises(TermOver):
            await term.put("/penstock/x", b"late")
        held = await store.get(keys.LEADER)
        assert held is not None and held.create_revision == term.number
    assert await store.get("/penstock/x") is None


async def test_of_many_who_run_at_once_one_leads_at_a_time(store: Etcd) -> None:
    leading: set[str] = set()
    terms: list[int] = []

    async def take_part(name: str) -> None:
        async with election(store, name).lead() as term:
            leading.add(name)
            for _ in range(5):
                await term.put(LEDGER, name.encode())
                assert leading == {name}
            terms.append(term.number)
            leading.discard(name)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for name in "abcdefgh":
            group.create_task(take_part(name))
    assert len(terms) == 8 and terms == sorted(terms)


async def test_a_killed_leader_is_followed_within_its_lease(clean_etcd: str, store: Etcd) -> None:
    ttl = 1.0
    async with candidate(clean_etcd, "killed", ttl) as process:
        waiting = election(store, "b", ttl).lead()
        entering = asyncio.ensure_future(waiting.__aenter__())
        process.kill()
        async with asyncio.timeout(30):
            await entering
        await waiting.__aexit__(None, None, None)


async def test_a_stopped_leader_writes_nothing_after_it_wakes(clean_etcd: str, store: Etcd) -> None:
    ttl = 1.0
    start = await store.put(LEDGER, b"0 begin")
    async with candidate(clean_etcd, "stopped", ttl) as process:
        process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(60), election(store, "b").lead() as term:
            process.send_signal(signal.SIGCONT)
            for number in range(100):
                await term.put(LEDGER, f"{term.number} {number}".encode())
        async with asyncio.timeout(30):
            assert await leading(process) > term.number
    terms = await ledger(store, start)
    assert terms == sorted(terms)
    assert terms.count(term.number) == 100


async def test_twenty_handovers_never_interleave(store: Etcd) -> None:
    """Three candidates, terms ended cleanly, by the store and by a clock that lies, while they write all the time."""
    start = await store.put(LEDGER, b"0 begin")
    seen: list[int] = []
    luck = random.Random(20)

    async def sabotage(term: Term) -> None:
        for _ in range(luck.randrange(1, 8)):
            await term.put(LEDGER, f"{term.number} -".encode())
        if luck.random() < 0.5:
            await store.delete(keys.LEADER)
            await write_ledger(term)

    async def take_part(name: str) -> None:
        while len(seen) < 21:
            with suppress(TermOver):
                async with election(store, name).lead() as term:
                    seen.append(term.number)
                    await sabotage(term)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for name in ("a", "b", "c"):
            group.create_task(take_part(name))
    terms = await ledger(store, start)
    assert terms == sorted(terms)
    assert len(set(seen)) == len(seen) >= 21
