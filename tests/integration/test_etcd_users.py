"""A real etcd with users: who is let in, how far, and what happens when tokens, passwords and roles change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from penstock.cluster import Membership, Mirror, keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Put, absent
from penstock.errors import PermissionDenied, Unavailable
from penstock.internal.v1.records_pb2 import WorkerRecord
from penstock.kit.login import Login
from tests.harness.etcd import EtcdProcess
from tests.harness.etcd_cluster import EtcdCluster
from tests.harness.processes import started

PASSWORD = "correct horse"
ROOT = ("--user", "root:rooted")
USERS = (
    "user add root --new-user-password rooted",
    "user grant-role root root",
    "role add penstock",
    "role grant-permission penstock readwrite --prefix=true /penstock/",
)


def make_users(process: EtcdProcess) -> None:
    """As docs/etcd.md has it, and stops short of asking anybody."""
    for line in USERS:
        process.ctl(*line.split())
    process.ctl("user", "add", "penstock", "--new-user-password", PASSWORD)
    process.ctl("user", "grant-role", "penstock", "penstock")


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(PASSWORD + "\n")
    return path


@pytest.fixture
async def guarded(etcd: EtcdProcess) -> EtcdProcess:
    """An etcd that asks everybody."""
    await asyncio.to_thread(make_users, etcd)
    await asyncio.to_thread(etcd.ctl, "auth", "enable")
    return etcd


@pytest.fixture
async def store(guarded: EtcdProcess, password_file: Path) -> AsyncIterator[Etcd]:
    client = Etcd([guarded.endpoint], login=Login("penstock", str(password_file)), timeout=10)
    yield client
    await client.close()


async def test_everything_that_penstock_does_is_let_in_and_nothing_else(store: Etcd) -> None:
    revision = await store.put("/penstock/a", b"1")
    async with aclosing(store.watch("/penstock/", revision)) as stream:
        while not (changes := await anext(stream)).events:
            pass
        assert changes.events[0].key == "/penstock/a"
    lease = await store.grant(5)
    assert (await store.txn([absent("/penstock/b")], [Put("/penstock/b", b"2", lease)])).succeeded
    assert (await store.keepalive(lease)).ttl > 0
    assert [item.key for item in (await store.range("/penstock/")).items] == ["/penstock/a", "/penstock/b"]
    await store.revoke(lease)
    assert await store.get("/penstock/b") is None
    assert await store.delete("/penstock/a")
    assert await store.alarms() == frozenset()
    for call in (store.get("/other"), store.put("/other", b""), store.range("/")):
        with pytest.raises(PermissionDenied, match="etcd_user"):
            await call


async def test_who_is_nobody_or_has_the_wrong_password_is_told_which_settings(
    guarded: EtcdProcess, tmp_path: Path, password_file: Path
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    for login in (None, Login("penstock", str(wrong)), Login("nobody", str(password_file))):
        client = Etcd([guarded.endpoint], login=login, timeout=10)
        with pytest.raises(Unavailable, match="see etcd_user and etcd_password_file") as raised:
            await client.put("/penstock/a", b"1")
        assert PASSWORD not in str(raised.value.detail)
        await client.close()


async def test_a_token_that_has_ended_is_asked_for_anew(store: Etcd, guarded: EtcdProcess) -> None:
    membership = Membership(store, ttl=5)
    seen = asyncio.Event()
    mirror = Mirror(store, keys.WORKERS, WorkerRecord, seen.set)
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(membership.run()), group.create_task(mirror.run())]
        await membership.put(keys.worker("w1"), WorkerRecord(id="w1"))
        await membership.settled()
        # Its tokens are in memory alone; what changes of users makes all of them old.
        await asyncio.to_thread(guarded.restart)
        for step, change in enumerate(
            ("user add late --new-user-password x", "role add later", "role delete later"), 2
        ):
            await asyncio.to_thread(guarded.ctl, *ROOT, *change.split())
            await membership.put(keys.worker(f"w{step}"), WorkerRecord(id=f"w{step}"))
            async with asyncio.timeout(60):
                await membership.settled()
                while keys.worker(f"w{step}") not in mirror.records:
                    seen.clear()
                    await seen.wait()
        for task in running:
            task.cancel()


async def test_a_changed_password_needs_no_restart(store: Etcd, guarded: EtcdProcess, password_file: Path) -> None:
    await store.put("/penstock/a", b"1")
    await asyncio.to_thread(password_file.write_text, "battery staple")
    for change in ("delete penstock", "add penstock --new-user-password", "grant-role penstock penstock"):
        words = change.split() + ["battery staple"] * change.endswith("password")
        await asyncio.to_thread(guarded.ctl, *ROOT, "user", *words)
    await store.put("/penstock/a", b"2")


async def test_users_may_be_made_while_everything_runs(etcd: EtcdProcess, password_file: Path) -> None:
    client = Etcd([etcd.endpoint], login=Login("penstock", str(password_file)), timeout=10)
    await client.put("/penstock/a", b"1")
    await asyncio.to_thread(make_users, etcd)
    await asyncio.to_thread(etcd.ctl, "auth", "enable")
    await client.put("/penstock/a", b"2")
    lease = await client.grant(5)
    await asyncio.to_thread(etcd.ctl, *ROOT, "auth", "disable")
    await client.put("/penstock/a", b"3", lease=lease)
    await client.close()


async def test_any_member_takes_the_user(etcd_cluster: EtcdCluster, password_file: Path) -> None:
    members = etcd_cluster.members
    await asyncio.to_thread(make_users, members[0])
    await asyncio.to_thread(members[0].ctl, "auth", "enable")
    endpoints = [member.endpoint for member in members]
    client = Etcd(endpoints, login=Login("penstock", str(password_file)), timeout=20)
    await client.put("/penstock/a", b"1")
    await asyncio.to_thread(members[0].kill)
    async with asyncio.timeout(60):
        while (item := await _read(client)) is None:
            pass
    assert item == b"1"
    await client.close()


async def _read(client: Etcd) -> bytes | None:
    """None while the others have no leader yet."""
    try:
        item = await client.get("/penstock/a")
    except Unavailable:
        return None
    return None if item is None else item.value


async def test_a_service_by_its_settings(guarded: EtcdProcess, password_file: Path, tmp_path: Path) -> None:
    free = ("--port=0", "--admin-port=0", f"--etcd={guarded.endpoint}")
    environment = {"PENSTOCK_ETCD_USER": "penstock", "PENSTOCK_ETCD_PASSWORD_FILE": str(password_file)}
    async with started("services.scheduler", *free, **environment) as process:
        await process.event("term_began")
    assert not any(PASSWORD in line for line in process.lines)
    empty = tmp_path / "empty"
    empty.touch()
    for flags, said in (
        (("--etcd-user=penstock",), "etcd_user and etcd_password_file go together"),
        ((f"--etcd-password-file={password_file}",), "etcd_user and etcd_password_file go together"),
        (("--etcd-user=penstock", "--etcd-password-file=/nowhere"), "etcd_password_file: /nowhere cannot be read"),
        (("--etcd-user=penstock", f"--etcd-password-file={empty}"), "must hold the password alone, on one line"),
    ):
        async with started("services.scheduler", *free, *flags) as process:
            assert await process.ended() == 2
        (line,) = process.lines
        assert line.startswith("scheduler: ") and said in line
