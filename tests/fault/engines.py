"""Faults of engines on a whole suite: too little memory on a device, killed for the host's, a lost device, errors for
answers, load and unload without end."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from penstock.v1 import cluster_pb2 as pb
from tests.fault.result import Impossible, Result, Scenario, answers_again, only_the_first_fail
from tests.fault.stand import WORKERS, Dress, Stand, wait_until
from tests.harness import models
from tests.harness.troubled_engine import Trouble, install

HURT = "worker-2"
MEMORY = Path("/sys/fs/cgroup/memory")
LIMIT = 512 << 20
"""Bytes that an engine may have when the kernel is to kill it."""
FITTING = 2
"""Rows that the device has memory for when it is short of it."""
CYCLES = 1000
FEW = 8
GOOD, BAD = "cycled", "unloadable"
ONES = np.ones((1, 16), np.float32)


@contextmanager
def _troubled(stand: Stand, workers: Sequence[str] = (HURT,), **dress: object) -> Iterator[tuple[Stand, Trouble]]:
    """A stand of its own, whose workers, HURT alone if nothing else is said, have engines that get into trouble on
    command."""
    with tempfile.TemporaryDirectory() as folder:
        trouble = install(Path(folder) / "hook")
        before = {worker: ("env", f"PYTHONPATH={trouble.folder}") for worker in workers}
        with stand.apart(Dress(before=before, **dress)) as own:  # type: ignore[arg-type]
            yield own, trouble


def device_full(stand: Stand) -> Result:
    """Row 2, CUDA: not every batch fits on the devices, but half of it does; then there is room again. On all of them:
    one alone would be slower than the others, and asked less until its batches are small."""
    result = Result()
    with _troubled(stand, WORKERS, manifest={"batching": {"max_batch_size": 2 * FITTING}}) as (own, trouble):
        before = [own.engines(worker) for worker in WORKERS]
        with own.load(times=6) as load:
            trouble.full(FITTING)
            load.wait_for(int(20 * own.rate))
            wait_until(lambda: own.events(HURT, "batch_failed"))
            trouble.over()
            answers_again(load, lambda entry: entry.worker == HURT)
        halved = sum(own.events(worker, "batch_failed") for worker in WORKERS)
        result.measured["batches run in halves"] = halved
        after = [own.engines(worker) for worker in WORKERS]
        result.must(after == before, "an engine was started anew for a want of memory")
    result.take(load.ledger)
    return result


def engine_out_of_memory(stand: Stand) -> Result:
    """Row 2, host: the kernel kills an engine in the middle of a batch because its memory is used up."""
    result = Result()
    with _troubled(stand) as (own, trouble):
        (engine,) = own.engines(HURT)
        with _limited(engine) as kills, own.load() as load:
            at = time.monotonic()
            trouble.eats(2 * LIMIT)
            wait_until(lambda: engine not in own.engines(HURT))
            trouble.over()
            load.wait_for(int(3 * own.rate))
            answers_again(load, lambda entry: entry.worker == HURT)
            result.measured["killed by the kernel"] = "yes" if kills() else "no"
            result.must(bool(kills()), "the kernel killed nothing")
    result.take(load.ledger, share=0.001)
    result.timed("recovery", load.ledger.recovery(at), 2.0)
    return result


def device_lost(stand: Stand) -> Result:
    """Row 4: an engine's device is lost; three times in ten minutes and the device is used no more."""
    result = Result()
    devices = {worker: ("--devices=gpu:1000000000",) for worker in WORKERS}
    needs = {"resources": {"devices": {"memory_bytes": 1000}}}
    with _troubled(stand, flags=devices, manifest=needs) as (own, trouble), own.load() as load:
        at = time.monotonic()
        trouble.lost()
        wait_until(lambda: own.events(HURT, "device_cordoned"))
        result.measured["cordoned after s"] = round(time.monotonic() - at, 2)
        wait_until(lambda: own.replicas() == set(WORKERS) - {HURT})
        trouble.over()
        load.wait_for(int(2 * own.rate))
        cordoned = time.monotonic()
        load.wait_for(int(own.rate))
        hurt = [entry.sent - at for entry in load.ledger.entries.values() if entry.worker == HURT]
        result.measured["last answer of the lost one s"] = round(max(hurt, default=0.0), 2)
        result.must(not any(0.5 < after < cordoned - at for after in hurt), "it was asked after its device was lost")
        result.must(not own.engines(HURT), "an engine still runs on the cordoned device")
        result.measured["losses"] = own.metric(HURT, "penstock_worker_device_losses_total", device="0")
        own.ask_to_stop(HURT)
        own.restart(HURT)
        answers_again(load, lambda entry: entry.worker == HURT)
    result.take(load.ledger)
    return result


def engine_fails(stand: Stand) -> Result:
    """Row 16: an engine answers every batch with an error, quickly; the worker and its replica seem well."""
    result = Result()
    with _troubled(stand) as (own, trouble), own.load() as load:
        at = time.monotonic()
        trouble.fails()
        load.wait_for(int(8 * own.rate))  # after ten seconds the replica would be taken elsewhere
        avoided = own.metric("gateway", "penstock_gateway_ejections_total", reason="failing")
        trouble.over()
        answers_again(load, lambda entry: entry.worker == HURT)
        result.measured["checks failed"] = own.events(HURT, "check_failed")
    only_the_first_fail(load.ledger, at, result)
    result.must(avoided == 1, f"it was found to be failing {avoided:g} times")
    return result


@contextmanager
def _limited(pid: int) -> Iterator[Callable[[], bool]]:
    """The process may have LIMIT bytes; gives what tells whether the kernel has killed for it."""
    own = next(
        (line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), ""
    )
    group = MEMORY / own.lstrip("/") / f"penstock-faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise Impossible(f"a control group with a memory limit cannot be made here ({error.strerror})") from None
    try:
        yield lambda: "oom_kill 0" not in (group / "memory.oom_control").read_text()
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text().strip())
        group.rmdir()


def load_cycles(stand: Stand) -> Result:
    """Load, infer, unload, again and again; some loads fail, and some engines are killed while they load. What workers
    hold is then what they held before."""
    result = Result()
    times = CYCLES if stand.thorough else FEW
    chance = random.Random(stand.seed)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, stand.load() as load:
        stand.client.publish(models.add_one(Path(folder) / GOOD, GOOD, add=2.0))
        stand.client.publish(models.unloadable(Path(folder) / BAD, BAD))
        _cycle(stand, "loaded")  # whatever is made once is made
        before = _held(stand)
        for _ in range(times):
            word = chance.choices(("loaded", "failed", "killed"), (6, 2, 2))[0]
            ends[word] += 1
            _cycle(stand, word)
        wait_until(lambda: _held(stand) == before)
        after = _held(stand)
    result.measured |= {"cycles": times, **{f"of them {word}": count for word, count in sorted(ends.items())}}
    result.measured["held before and after"] = "the same" if after == before else f"{before} → {after}"
    result.must(after == before, f"workers hold {after}, before it was {before}")
    result.take(load.ledger)
    return result


def _cycle(stand: Stand, how: str) -> None:
    """One replica comes, is asked, and goes; or fails to come; or is killed on its way and comes all the same."""
    name = BAD if how == "failed" else GOOD
    stand.client.deploy(name, version=1, replicas=1)
    if how == "failed":
        wait_until(lambda: pb.REPLICA_STATE_FAILED in _states(stand, name))
    else:
        if how == "killed":
            worker = _worker_of(stand, name)
            wait_until(lambda: len(stand.engines(worker)) == 2)
            os.kill(stand.engines(worker)[-1], signal.SIGKILL)
        stand.client.wait_ready(name, timeout=120)
        answer = stand.client.infer(name, {"x": ONES}, timeout=10)
        assert (answer["y"] == 3).all()
    stand.client.undeploy(name, wait=120)
    wait_until(lambda: all(len(stand.engines(worker)) == 1 for worker in WORKERS))


def _states(stand: Stand, name: str) -> list[int]:
    versions = stand.client.status(name).versions
    return [replica.state for version in versions for replica in version.replicas]


def _worker_of(stand: Stand, name: str) -> str:
    def found() -> list[str]:
        return [each.worker for version in stand.client.status(name).versions for each in version.replicas]

    wait_until(found)
    return found()[0]


def _held(stand: Stand) -> dict[str, tuple[float, int, int]]:
    """By worker: reserved bytes by its own ledger, engines, and what it has open for them."""
    return {
        worker: (
            stand.metric(worker, "penstock_worker_reserved_bytes"),
            len(stand.engines(worker)),
            _descriptors(stand.suite.running()[worker]),
        )
        for worker in WORKERS
    }


def _descriptors(pid: int) -> int:
    """Memory files and process handles that a process has open."""
    kinds = ("memfd", "pidfd")
    found = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found += any(kind in os.readlink(link) for kind in kinds)
    return found


SCENARIOS = (
    Scenario(
        "2",
        "device-full",
        f"batches of more than {FITTING} rows do not fit on any device",
        "failed 0, the same engines",
        device_full,
    ),
    Scenario(
        "2",
        "engine-out-of-memory",
        "the kernel kills an engine for its memory, in the middle of a batch",
        "failed ≤ 0.1 %, recovery ≤ 2 s",
        engine_out_of_memory,
    ),
    Scenario(
        "4",
        "device-lost",
        "an engine loses its device, and each that follows it",
        "failed 0, nothing routed there, cordoned after three",
        device_lost,
    ),
    Scenario(
        "16",
        "engine-fails",
        "an engine answers every batch with an error for 8 s",
        "only what was there fails; avoided ≤ 3 s",
        engine_fails,
    ),
    Scenario(
        "ledger",
        "load-cycles",
        f"load, infer, unload {FEW} times, thorough {CYCLES}; some loads fail or are killed",
        "failed 0, workers hold what they held",
        load_cycles,
        quick=True,
    ),
)
