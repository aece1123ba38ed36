"""Several processes as one service: real ones, with real signals, real load, and a ledger of every call."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import tempfile
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from penstock.channel import dial
from penstock.errors import PenstockError
from penstock.wire.client import Peer
from tests.harness.processes import Service, children_of, started

TINY = "tests.harness.tiny_service"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files that has no others; pytest's own is too deep for a socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


class Group:
    """A supervised tiny service."""

    def __init__(self, service: Service, record: dict[str, Any]) -> None:
        self.service = service
        self.address: str = record["address"]
        self.admin: str = record["admin"]

    def children(self) -> list[int]:
        """Pids of its processes."""
        return children_of(self.service.pid)

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(fetch, f"http://{self.admin}{path}")

    async def metrics(self) -> str:
        status, text = await self.get("/metrics")
        assert status == 200
        return text

    async def until(self, path: str, wanted: tuple[int, str]) -> None:
        """Asks until the answer is the wanted one."""
        async with asyncio.timeout(30):
            while True:
                if await self.get(path) == wanted:
                    return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def group(*flags: str, count: int = 2, **environment: str) -> AsyncIterator[Group]:
    async with started(TINY, f"--processes={count}", "--id=tiny", *flags, **environment) as service:
        running = Group(service, await service.event("started", process="tiny"))
        family = set(running.children())
        try:
            yield running
        except BaseException:
            # Nothing that it started is left behind by a test that failed.
            for pid in {service.pid, *family, *running.children()}:
                kill_if_ours(pid)
            raise


async def logged(service: Service, event: str, **fields: Any) -> None:
    """Waits until there is such a record, which may have been read already: the processes log side by side."""
    wanted = {"event": event, **fields}.items()
    if not any(wanted <= record.items() for record in service.records):
        await service.event(event, **fields)


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_if_ours(pid: int) -> None:
    with suppress(OSError):
        if TINY.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def folders(parent: Path) -> list[Path]:
    """Of running services."""
    return list(parent.glob("penstock-run-*"))


async def holds(condition: Callable[[], bool], within: float = 60) -> None:
    """Waits for what nobody can tell us: the state of other processes, and of the calls in the ledger."""
    async with asyncio.timeout(within):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def gone(pid: int, within: float = 60) -> None:
    await holds(lambda: not alive(pid), within)


def counted(text: str, name: str) -> float:
    """Sum over a metric's series."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


CALLS = 'penstock_rpcs_total{code="OK",method="/test.Tiny/Unary"}'


async def said(peer: Peer, text: bytes, seconds: float = 60) -> bytes:
    """One call of the data plane."""
    deadline = asyncio.get_running_loop().time() + seconds
    return bytes((await peer.unary("ModelInfer", text, deadline=deadline, headers={})).payload)


async def spread_peers(running: Group, wanted: int = 2) -> list[Peer]:
    """Peers of which at least one is connected to each process: the kernel spreads connections, not we."""
    peers: list[Peer] = []
    async with asyncio.timeout(30):
        while len(connected_to(running)) < wanted:
            peers.append(Peer(running.address))
            assert await said(peers[-1], b"hello") == b"hello"
    return peers


def connected_to(running: Group) -> dict[int, set[int]]:
    """For each process that has connections of the data plane, established ones on the public port: the ports at their
    other ends."""
    port = f":{int(running.address.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {
        f"socket:[{row[9]}]": int(row[2].rpartition(":")[2], 16)
        for row in rows
        if row[1].endswith(port) and row[3] == "01"
    }
    found: dict[int, set[int]] = {}
    for pid in running.children():
        links = {link_of(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
        found[pid] = {ends[link] for link in links & ends.keys()}
    return {pid: ports for pid, ports in found.items() if ports}


def port_of(peer: Peer) -> int:
    """Of its end of its connection."""
    assert peer._link is not None
    return int(peer._link.transport.get_extra_info("sockname")[1])


def link_of(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""


class Load:
    """Calls without a pause over many connections, until told to stop; a ledger of every outcome. failed: which of the
    calls have failed, by their place."""

    def __init__(self, calls: list[Callable[[bytes], Any]]) -> None:
        self._calls = calls
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self.right = 0
        self.failures: list[str] = []
        self.failed: set[int] = set()

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._repeat(*each)) for each in enumerate(self._calls)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Waits for so many more right answers."""
        goal = self.right + count
        await holds(lambda: self.right >= goal)

    async def _repeat(self, place: int, call: Callable[[bytes], Any]) -> None:
        number = 0
        while not self._over:
            number += 1
            text = f"call {number}".encode()
            try:
                assert await call(text) == text
                self.right += 1
            except (PenstockError, grpc.aio.AioRpcError) as failure:
                self.failures.append(repr(failure))
                self.failed.add(place)
                await asyncio.sleep(0.01)


# One service.


async def test_one_port_one_admin_one_exit_status(temporary: Path) -> None:
    async with group("--port=0", TMPDIR=str(temporary)) as running:
        assert len(running.children()) == 2
        assert await running.get("/readyz") == (200, "ok: 2 of 2 processes are ready\n")
        assert await running.get("/healthz") == (200, "ok: 2 of 2 processes run\n")
        peers = await spread_peers(running)
        async with dial(running.address) as channel:
            for _ in range(3):
                assert await unary(channel, b"hello") == b"hello"
        names = {record["process"] for record in running.service.records if record.get("event") == "started"}
        assert names == {"tiny", "tiny.1", "tiny.2"}
        assert len(folders(temporary)) == 1
        children = running.children()
        running.service.send(signal.SIGTERM)
        assert await running.service.ended() == 0
        assert not any(alive(pid) for pid in children)
        for peer in peers:
            await peer.close()
    assert folders(temporary) == [], "nothing is left behind"


async def test_counters_are_summed_and_do_not_go_back_when_a_process_dies_or_is_renewed() -> None:
    async with group() as running:
        async with dial(running.address) as channel, dial(running.address) as other:
            for each in (channel, other):
                for _ in range(5):
                    await unary(each, b"hello")
        text = await running.metrics()
        assert f"{CALLS} 10.0" in text
        assert "penstock_ready 1.0" in text and "penstock_processes 2.0" in text
        for name in ("tiny", "tiny.1", "tiny.2"):
            assert f'process_resident_memory_bytes{{process="{name}"}}' in text
        assert "# TYPE penstock_rpcs_total counter" in text
        os.kill(running.children()[0], signal.SIGKILL)
        await running.service.event("process_ready", process="tiny")
        text = await running.metrics()
        assert f"{CALLS} 10.0" in text
        assert "penstock_process_restarts_total 1.0" in text
        async with dial(running.address) as channel:
            await unary(channel, b"hello")
        # Never scraped before it ends: what it hands over at its end counts.
        running.service.send(signal.SIGHUP)
        await running.service.event("renewed")
        assert f"{CALLS} 11.0" in await running.metrics()


async def test_a_process_that_is_stuck_is_named() -> None:
    async with group() as running:
        stuck = running.children()[0]
        os.kill(stuck, signal.SIGSTOP)
        try:
            named = "tiny.1: it does not answer\n"
            await running.until("/readyz", (200, f"ok: 1 of 2 processes are ready; {named}"))
            await running.until("/healthz", (503, named))
        finally:
            os.kill(stuck, signal.SIGCONT)
        await running.until("/healthz", (200, "ok: 2 of 2 processes run\n"))


# The end.


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
async def test_all_drain_at_the_same_time_and_finish_what_is_in_flight(first: signal.Signals) -> None:
    async with group("--drain-seconds=600") as running:
        peers = await spread_peers(running)
        held = [asyncio.create_task(said(peer, b"hold who", 60)) for peer in peers]
        for _ in held:
            await running.service.event("holding")
        children = running.children()
        running.service.send(first)
        for name in ("tiny", "tiny.1", "tiny.2"):
            await logged(running.service, "draining", process=name)
        assert not any(each.done() for each in held)
        for pid in children:
            os.kill(pid, signal.SIGUSR1)
        assert await asyncio.gather(*held) == [b"local"] * len(held)
        assert await running.service.ended() == 0


async def test_a_second_signal_ends_all_at_once() -> None:
    async with group("--drain-seconds=600") as running:
        peers = await spread_peers(running)
        held = [asyncio.create_task(said(peer, b"hold", 60)) for peer in peers]
        for _ in held:
            await running.service.event("holding")
        children = running.children()
        running.service.send(signal.SIGTERM)
        await running.service.event("draining", process="tiny")
        running.service.send(signal.SIGTERM)
        assert await running.service.ended() == -signal.SIGTERM
        for pid in children:
            await gone(pid)
        assert all(isinstance(each, PenstockError) for each in await asyncio.gather(*held, return_exceptions=True))


async def test_processes_whose_supervisor_was_killed_drain_by_themselves(temporary: Path) -> None:
    async with group("--drain-seconds=600", TMPDIR=str(temporary)) as running:
        peers = await spread_peers(running)
        held = [asyncio.create_task(said(peer, b"hold", 60)) for peer in peers]
        for _ in held:
            await running.service.event("holding")
        children = running.children()
        running.service.send(signal.SIGKILL)
        for name in ("tiny.1", "tiny.2"):
            await logged(running.service, "supervisor_gone", process=name)
            await logged(running.service, "step", name="drain-2", process=name)
        for pid in children:
            os.kill(pid, signal.SIGUSR1)
        assert await asyncio.gather(*held) == [b"hold"] * len(held)
        for pid in children:
            await gone(pid)
    async with group(TMPDIR=str(temporary)) as again:
        assert len(folders(temporary)) == 1, "the next start sweeps what was left"
        again.service.send(signal.SIGTERM)
        assert await again.service.ended() == 0


# Under load.


async def test_a_killed_process_costs_its_own_connections_alone() -> None:
    async with group(count=3) as running:
        peers = await spread_peers(running, wanted=3)
        calls = [lambda text, peer=peer: said(peer, text) for peer in peers]
        victim = running.children()[0]
        ports = connected_to(running)[victim]
        its_own = {place for place, peer in enumerate(peers) if port_of(peer) in ports}
        assert its_own
        async with Load(calls) as load:  # type: ignore[arg-type]
            await load.more(200)
            os.kill(victim, signal.SIGKILL)
            ended = await running.service.event("process_ended")
            assert ended["ended"] == "tiny.1" and ended["status"] == -signal.SIGKILL
            await load.more(200)
            await running.service.event("process_ready", ready="tiny.1")
            await load.more(200)
        # One call in flight on each connection at most, perhaps another that met a port that was about to close.
        assert load.failed <= its_own
        assert len(load.failures) <= 3 * len(its_own), load.failures
        await running.until("/readyz", (200, "ok: 3 of 3 processes are ready\n"))
        for peer in peers:
            await peer.close()


async def test_a_renewal_drops_no_call() -> None:
    async with group(count=2) as running:
        peers = await spread_peers(running)
        async with dial(running.address) as channel, dial(running.address) as other:
            calls: list[Any] = [lambda text, peer=peer: said(peer, text) for peer in peers]
            calls += [lambda text, each=each: unary(each, text) for each in (channel, other)]
            before = running.children()
            async with Load(calls) as load:
                await load.more(200)
                running.service.send(signal.SIGHUP)
                await running.service.event("renewed")
                await load.more(200)
            assert load.failures == []
            assert not set(before) & set(running.children())
            assert len(running.children()) == 2
        for peer in peers:
            await peer.close()


async def unary(channel: Any, text: bytes) -> bytes:
    return bytes(await channel.unary_unary("/test.Tiny/Unary")(text, timeout=60))


async def test_new_connections_are_never_refused_during_a_renewal() -> None:
    async with group(count=2) as running:

        async def fresh(text: bytes) -> bytes:
            peer = Peer(running.address)
            try:
                return await said(peer, text)
            finally:
                await peer.close()

        async with Load([fresh] * 4) as load:
            await load.more(50)
            running.service.send(signal.SIGHUP)
            await running.service.event("renewed")
            await load.more(50)
        assert load.failures == []


async def test_a_renewal_whose_first_process_cannot_start_leaves_all_as_they_are(tmp_path: Path) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text("drain_seconds = 5.0\n")
    async with group(f"--config={config}") as running:
        before = running.children()
        config.write_text("no_such_option = 1\n")
        running.service.send(signal.SIGHUP)
        assert (await running.service.event("renewal_failed"))["kept"] == "tiny.1"
        assert running.children() == before
        assert await running.get("/readyz") == (200, "ok: 2 of 2 processes are ready\n")
        # One that dies now cannot come back, but it takes nobody with it, and is tried again.
        os.kill(before[0], signal.SIGKILL)
        for _ in range(3):
            await running.service.event("process_ended", ended="tiny.1")
        assert (await running.get("/readyz"))[1].startswith("ok: 1 of 2")
        config.write_text("drain_seconds = 6.0\n")
        await running.service.event("process_ready", ready="tiny.1")
        await running.until("/readyz", (200, "ok: 2 of 2 processes are ready\n"))


# Refusing to start.


async def test_what_a_process_refuses_ends_the_service_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with started(TINY, "--processes=3", f"--trace-file={tmp_path}/file/traces") as service:
        assert await service.ended() == 2
    assert len([line for line in service.lines if line.startswith("tiny: ")]) == 1, "said once"
    assert "Traceback" not in "\n".join(service.lines)


@pytest.mark.parametrize(
    ("second", "trouble"), [("--processes=2", ""), ("--processes=1", ""), ("--processes=2", "hang")]
)
async def test_nobody_else_gets_on_the_port(second: str, trouble: str) -> None:
    """Neither while its processes listen nor, for another supervisor, before they do."""
    async with started(TINY, "--processes=2", "--port=0", f"--trouble={trouble}") as first:
        await first.event("hanging" if trouble else "process_ready")
        port = listening_or_bound(first)
        async with started(TINY, second, f"--port={port}") as service:
            assert await service.ended() == 2
        assert f"tiny: cannot listen on 127.0.0.1:{port}: is the port in use?" in service.lines
        first.send(signal.SIGTERM)
        assert await first.ended() == 0


def listening_or_bound(service: Service) -> int:
    """The port that the supervisor reserved, from its claim."""
    names = {link_of(descriptor) for descriptor in Path(f"/proc/{service.pid}/fd").iterdir()}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    (claim,) = (row[7] for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in names and "/port/" in row[7])
    return int(claim.split("/")[-2])


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
async def test_a_port_in_use_is_named(flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with started(TINY, "--processes=2", f"{flag}={port}") as service:
            assert await service.ended() == 2
        (line,) = service.lines
        assert line.startswith(f"tiny: cannot listen on 127.0.0.1:{port}")
