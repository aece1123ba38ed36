"""Faults of what the suite stands on: etcd's disk, its room, its history, wall clocks, the registry's disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock import errors
from tests.fault import store
from tests.fault.result import LEASE, Impossible, Result, Scenario
from tests.fault.stand import MODEL, SCHEDULERS, USUAL, WORKERS, Dress, Stand, wait_until
from tests.harness import models
from tests.harness.clock import Clock, NoCompiler

SYNC_DELAY = 2.0
"""Seconds that each fsync takes longer."""
SLOW_FOR = 4 * LEASE
STEPS = (3600, -3600, 300, -300)
"""Seconds by which a wall clock jumps."""
CLOCKED = ("registry", "scheduler-1", "scheduler-2", "worker-2", "gateway")
QUOTA = 32 << 20
"""Bytes that the stand's etcd may hold where it is to be filled."""
DISK = 160 << 20
"""Bytes of the registry's small disk: what it keeps free, and a few models."""
WEIGHTS = 12 << 20
ALIASES = 200
"""Changes of the database while the disk is full."""
FULL = errors.ResourceExhausted.code.name


def etcd_slow_disk(stand: Stand) -> Result:
    """Row 8."""
    result = Result()
    since, engines = stand.revision(), [stand.engines(worker) for worker in WORKERS]
    with stand.load() as load:
        with _slow_sync(stand) as how:
            until = time.monotonic() + SLOW_FOR
            took = max(stand.ask(store.write_seconds(stand.etcd())) for _ in range(3))
            result.measured["a write s"] = round(took, 2)
            result.must(took >= SYNC_DELAY, f"a write took {took:.2f} s only: the disk was not slow")
            while time.monotonic() < until:
                load.wait_for(int(stand.rate / 2))
        result.measured["by"] = how
        result.measured["leases that etcd gave up"] = stand.ask(store.removed(stand.etcd(), since))
        written = stand.stale_commands(since)[0]
        result.measured["assignments changed"] = written
        result.must(not written, f"{written} assignments were changed, and every worker was there all the time")
        result.must(engines == [stand.engines(worker) for worker in WORKERS], "engines were started anew")
        stand.settle()
        result.measured["change carried out s"] = round(stand.change(), 2)
    result.take(load.ledger)
    return result


def etcd_full(stand: Stand) -> Result:
    """Row 9: etcd's own quota is used up, and made room again as an operator does it."""
    result = Result()
    with stand.apart(Dress(flags={"etcd": (f"--quota-backend-bytes={QUOTA}",)})) as own, own.load() as load:
        own.ask(store.fill(own.etcd()))
        full = time.monotonic()
        wait_until(lambda: _alarmed(own))
        result.timed("alert", time.monotonic() - full, 10.0)
        result.measured["a change meanwhile"] = _word(lambda: own.client.deploy(MODEL, replicas=len(WORKERS) - 1))
        load.wait_for(int(2 * LEASE * own.rate))
        result.must(len(own.replicas()) == len(WORKERS), "a replica is gone")
        _ctl(own, "compact", str(own.revision()))
        _ctl(own, "defrag")
        _ctl(own, "alarm", "disarm")
        mended = time.monotonic()
        wait_until(lambda: not _alarmed(own))
        result.measured["alert over s"] = round(time.monotonic() - mended, 2)
        own.client.deploy(MODEL, replicas=len(WORKERS), wait=120)
        own.settle()
        result.timed("change carried out", own.change(), 10.0)
    result.take(load.ledger)
    return result


def etcd_restored(stand: Stand) -> Result:
    """Row 6: etcd is put back to a snapshot from before a change, while everything runs."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder, stand.load() as load:
        snapshot = Path(folder) / "snapshot"
        _ctl(stand, "snapshot", "save", str(snapshot))
        stand.client.deploy(MODEL, replicas=len(WORKERS) - 1, wait=120)
        stand.kill("etcd")
        shutil.rmtree(stand.suite.state / "etcd")
        _restore(stand, snapshot)
        stand.suite.start("etcd")
        stand.suite.wait_ready("etcd")
        back = time.monotonic()
        wait_until(lambda: stand.ask(store.wanted(stand.etcd(), MODEL)) == len(WORKERS) - 1)
        result.measured["registry wrote what is wanted s"] = round(time.monotonic() - back, 2)
        wait_until(lambda: stand.ask(store.registered(stand.etcd())) >= set(WORKERS))
        result.timed("workers registered", time.monotonic() - back, LEASE + 1)
        stand.client.deploy(MODEL, replicas=len(WORKERS), wait=120)
        stand.settle()
        result.measured["change carried out"] = "yes"
    result.take(load.ledger)
    return result


def clocks_stepped(stand: Stand) -> Result:
    """Row 15: the wall clock of one process after the other jumps."""
    result = Result()
    with tempfile.TemporaryDirectory() as folder:
        try:
            clocks = {name: Clock(Path(folder) / name) for name in CLOCKED}
        except NoCompiler as lack:
            raise Impossible(str(lack)) from None
        before = {name: ["env", *clock.environment()] for name, clock in clocks.items()}
        with stand.apart(Dress(before=before)) as own, own.load() as load:
            terms = _terms(own)
            for clock in clocks.values():
                for step in STEPS:
                    clock.shift(step)
                    load.wait_for(int(own.rate))
                clock.shift(STEPS[0])
                load.wait_for(int(LEASE * own.rate / 2))
                clock.shift(0)
            result.measured |= {"processes": len(clocks), "steps each": len(STEPS)}
            changes = _terms(own) - terms
            result.measured["leader changes"] = changes
            result.must(not changes, f"the leader changed {changes} times")
            own.change()
        result.take(load.ledger)
    return result


def registry_full(stand: Stand) -> Result:
    """Row 18: uploads until nothing fits, then not even the database can grow; then there is room again."""
    result = Result()
    with (
        stand.apart(USUAL) as own,
        _small_disk(own) as disk,
        tempfile.TemporaryDirectory() as folder,
        own.load() as load,
    ):
        models_at = Path(folder)
        published, refusal = _published_until_full(own, models_at)
        result.measured |= {"published": len(published), "refused with": f"“{refusal}”"}
        result.must(bool(refusal), "the disk was never full")
        _only_whole(own, published, disk, result)
        with _no_byte_free(disk):
            words = [_word(lambda: own.client.publish(models.add_one(models_at / "small", "small")))]
            words += [_word(lambda n=n: own.client.set_alias(MODEL, f"alias-{n}", 1)) for n in range(ALIASES)]  # type: ignore[misc]
            result.measured["without a byte"] = ", ".join(sorted(set(words)))
            result.must(words[0] == FULL, f"publishing without a byte ended with {words[0]}")
            result.must(FULL in words[1:], "the database was never full")
            result.must(set(words) <= {FULL, "done"}, f"there are other errors than {FULL}")
            _only_whole(own, published, disk, result)
        subprocess.run(["mount", "-o", f"remount,size={2 * DISK}", str(disk)], check=True)
        own.client.publish(_big(models_at / "late", "late"))
        own.change()
        result.measured["after room was made"] = "published and deployed, without a restart"
        _only_whole(own, [*published, "late"], disk, result)
        load.wait_for(int(own.rate))
    result.take(load.ledger)
    return result


def _published_until_full(stand: Stand, folder: Path) -> tuple[list[str], str]:
    """Names of the models that fitted, and what was said of the first that did not."""
    published: list[str] = []
    for number in range(DISK // WEIGHTS + 1):
        name = f"big-{number}"
        try:
            stand.client.publish(_big(folder / name, name))
        except errors.ResourceExhausted as full:
            return published, full.message
        published.append(name)
    return published, ""


@contextmanager
def _slow_sync(stand: Stand) -> Iterator[str]:
    """Every fsync of etcd takes SYNC_DELAY longer, by strace where that is possible; how it was done."""
    pid = stand.suite.running()["etcd"]
    tracer = shutil.which("strace")
    if tracer is None:
        with _pulses(pid):
            yield f"SIGSTOP of etcd for {SYNC_DELAY:g} s again and again (no strace here)"
        return
    inject = f"inject=fsync,fdatasync:delay_enter={int(SYNC_DELAY * 1e6)}"
    command = [tracer, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject, "-p", str(pid)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _traced(pid) or process.poll() is not None)
        if process.poll() is not None:
            raise Impossible("strace may not attach to etcd")
        yield f"every fsync {SYNC_DELAY:g} s later"
        if process.poll() is not None:
            raise Impossible("strace ended before its time")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def _traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


@contextmanager
def _pulses(pid: int) -> Iterator[None]:
    end = threading.Event()

    def pulse() -> None:
        while not end.is_set():
            os.kill(pid, signal.SIGSTOP)
            end.wait(SYNC_DELAY)
            os.kill(pid, signal.SIGCONT)
            end.wait(SYNC_DELAY / 10)

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _ctl(stand: Stand, *words: str) -> None:
    command = [str(stand.suite.etcd.path.with_name("etcdctl")), f"--endpoints={stand.etcd()}", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _restore(stand: Stand, snapshot: Path) -> None:
    etcd = next(row.command for row in stand.suite.table() if row.name == "etcd")
    named = [flag for flag in etcd if flag.startswith(("--name", "--initial-", "--data-dir"))]
    command = [str(stand.suite.etcd.path.with_name("etcdutl")), "snapshot", "restore", str(snapshot), *named]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def _alarmed(stand: Stand) -> bool:
    return any(stand.metric(name, "penstock_scheduler_etcd_alarm", alarm="NOSPACE") for name in SCHEDULERS)


def _terms(stand: Stand) -> int:
    return sum(stand.events(name, "term_began") for name in SCHEDULERS)


@contextmanager
def _small_disk(stand: Stand) -> Iterator[Path]:
    """The registry's folder lies on a disk of its own, with all that it held."""
    folder = stand.suite.state / "registry"
    kept = folder.with_name("registry-kept")
    stand.ask_to_stop("registry")
    folder.rename(kept)
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        raise Impossible("a tmpfs cannot be mounted here (it needs root)")
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        stand.restart("registry")
        yield folder
        stand.ask_to_stop("registry")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _big(folder: Path, name: str) -> Path:
    """A model whose file is mostly weights that nobody uses: nothing loads it."""
    models.add_one(folder, name)
    with (folder / "model.onnx").open("ab") as file:
        # Field 100 of ModelProto, which no schema has: readers pass over it.
        file.write(b"\xa2\x06" + _varint(WEIGHTS) + os.urandom(WEIGHTS))
    return folder


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


@contextmanager
def _no_byte_free(disk: Path) -> Iterator[None]:
    junk = disk / "junk"
    try:
        with suppress(OSError), junk.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        with suppress(OSError), junk.open("ab", buffering=0) as file:
            while True:
                file.write(b"\0")
        yield
    finally:
        junk.unlink(missing_ok=True)


def _word(change: Callable[[], object]) -> str:
    """The code that a change ends with, or `done`."""
    try:
        change()
    except errors.PenstockError as error:
        return error.code.name
    return "done"


def _only_whole(stand: Stand, published: list[str], disk: Path, result: Result) -> None:
    """What the registry shows is exactly what was published, and every artifact under blobs/ is whole."""
    listed = {model.name for model in stand.client.models()} - {MODEL}
    result.must(listed == set(published), f"listed are {sorted(listed)}, published were {published}")
    broken = 0
    for path in (disk / "blobs").glob("??/*"):
        broken += hashlib.sha256(path.read_bytes()).hexdigest() != path.parent.name + path.name
    result.must(not broken, f"{broken} partial artifacts are visible")
    result.measured["partial artifacts visible"] = broken


SCENARIOS = (
    Scenario(
        "6",
        "etcd-restored",
        "etcd put back to a snapshot from before a change",
        "failed 0, all is as wanted",
        etcd_restored,
    ),
    Scenario(
        "8",
        "etcd-slow-disk",
        f"each fsync of etcd takes {SYNC_DELAY:g} s longer, for {SLOW_FOR:g} s",
        "failed 0, assignments changed 0, the same engines",
        etcd_slow_disk,
    ),
    Scenario("9", "etcd-full", "etcd's quota is used up", "failed 0, alert ≤ 10 s, changes go on after", etcd_full),
    Scenario(
        "15", "clocks-stepped", "wall clock of one process ± 1 h, ± 5 min", "failed 0, leader changes 0", clocks_stepped
    ),
    Scenario(
        "18",
        "registry-full",
        "the registry's disk is full, to the last byte",
        "RESOURCE_EXHAUSTED, partial artifacts 0, reads go on, no restart",
        registry_full,
    ),
)
