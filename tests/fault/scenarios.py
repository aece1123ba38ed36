"""The rows of the faults table that are tried: what is done to the suite under load, and what must hold.

Each leaves the stand as it found it. What must hold always (lost, wrong, duplicated, failed beyond what is allowed,
stale commands) makes a row broken; a time that was missed is only told, since a busy machine misses times.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.fault import cold_start
from tests.fault.ledger import Entry, Ledger
from tests.fault.stand import GATEWAYS, PROXIED, Load, Stand, wait_until

LEASE = 5.0
"""Seconds of a lease: of a worker, and of the leader's term."""
ETCD_GONE = 30.0
"""Seconds for which etcd is gone."""
KILLS = 3
"""Leaders killed in a row."""


@dataclass(slots=True)
class Result:
    """What a scenario gave. measured: by name, for people and JSON; broken: what must hold and did not; missed: times
    that were not kept."""

    measured: dict[str, float | int | str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def take(self, ledger: Ledger, *, share: float = 0.0, most: int = 0) -> None:
        """Adds the sums of a load. share, most: of requests that may end with an error, the greater counts."""
        account = ledger.account()
        self.measured |= {"sent": account.sent, "lost": account.lost, "wrong": account.wrong}
        self.measured |= {"duplicated": account.duplicated, "failed": account.failures}
        self.measured["p99 ms"] = round(account.p99 * 1e3, 1)
        self.broken += account.broken
        if account.failures > max(most, share * account.sent):
            self.broken.append(f"failed {account.failures} of {account.sent}: {account.failed}")

    def timed(self, name: str, seconds: float, limit: float) -> None:
        """Adds a time that should be at most so long."""
        self.measured[f"{name} s"] = round(seconds, 2)
        if not seconds <= limit:
            self.missed.append(f"{name}: {seconds:.2f} s, at most {limit:g} s asked for")

    def must(self, holds: bool, otherwise: str) -> None:
        """Adds something that must hold."""
        if not holds:
            self.broken.append(otherwise)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row. row: of the table of faults; done: what is done; required: in words; quick: an ordinary test too."""

    row: str
    name: str
    done: str
    required: str
    run: Callable[[Stand], Result]
    quick: bool = False


def worker_killed(stand: Stand) -> Result:
    """Row 1."""
    result = Result()
    with stand.load() as load:
        at = stand.kill("worker-1")
        load.wait_for(int(5 * stand.rate))
        stand.restart("worker-1")
    result.take(load.ledger, share=0.001)
    result.timed("recovery", load.ledger.recovery(at), 2.0)
    return result


def etcd_gone(stand: Stand) -> Result:
    """Row 5."""
    result = Result()
    with stand.load() as load:
        at = stand.kill("etcd")
        time.sleep(ETCD_GONE)
        stand.suite.start("etcd")
        stand.suite.wait_ready("etcd")
        back = time.monotonic()
        result.timed("change carried out", stand.change(), 5.0)
    result.take(load.ledger)
    before, during = load.ledger.account(until=at), load.ledger.account(at, back)
    result.measured["p99 ms before"] = round(before.p99 * 1e3, 1)
    result.measured["p99 ms without etcd"] = round(during.p99 * 1e3, 1)
    return result


def leader_killed(stand: Stand) -> Result:
    """Row 10."""
    result = Result()
    since, takeovers = stand.revision(), []
    with stand.load() as load:
        for _ in range(KILLS):
            first = stand.leader()
            at = stand.kill(first)
            wait_until(lambda first=first: stand.leader() not in ("", first), 30)  # type: ignore[misc]
            takeovers.append(time.monotonic() - at)
            stand.change()
            stand.restart(first)
    result.take(load.ledger)
    result.measured["kills"] = KILLS
    result.timed("takeover at most", max(takeovers), LEASE + 1.0)
    _no_stale_commands(stand, since, result)
    return result


def leader_frozen(stand: Stand) -> Result:
    """Row 11."""
    result = Result()
    since = stand.revision()
    with stand.load() as load:
        first = stand.leader()
        with stand.frozen(first) as at:
            wait_until(lambda: stand.leader() not in ("", first), 30)
            result.timed("takeover", time.monotonic() - at, LEASE + 1.0)
            stand.change()
            while time.monotonic() - at < 3 * LEASE:
                load.wait_for(int(stand.rate / 2))
        load.wait_for(int(stand.rate))
        stand.change()
        result.must(stand.leader() != first, "the frozen leader leads again without an election")
    result.take(load.ledger)
    _no_stale_commands(stand, since, result)
    return result


def worker_cut_from_etcd(stand: Stand) -> Result:
    """Row 12, etcd only: it keeps serving what it has until others have taken over, and comes back."""
    result = Result()
    with stand.load() as load:
        at = time.monotonic()
        stand.to_etcd.hang()
        wait_until(lambda: PROXIED not in stand.replicas(), 60)
        load.wait_for(int(2 * stand.rate))
        stand.to_etcd.heal()
        stand.settle()
    result.take(load.ledger, share=0.005)
    result.timed("recovery", load.ledger.recovery(at), 4.0)
    return result


def worker_cut_from_gateways(stand: Stand) -> Result:
    """Row 12, gateways only: connections stay open and carry nothing."""
    result = Result()
    with _proxied(stand), stand.load() as load:
        at = time.monotonic()
        stand.to_worker.hang()
        load.wait_for(int(8 * stand.rate))
        stand.to_worker.heal()
        _answers_again(load, lambda entry: entry.worker == PROXIED)
    _only_the_first_fail(load.ledger, at, result)
    result.timed("recovery", load.ledger.recovery(at), 4.0)
    return result


def gateway_asked_to_stop(stand: Stand) -> Result:
    """Row 13, SIGTERM."""
    result = Result()
    with stand.load(("gateway-2", "gateway"), retries=1) as load:
        result.timed("drain", stand.ask_to_stop("gateway-2"), 30.0)
        load.wait_for(int(2 * stand.rate))
        stand.restart("gateway-2")
        load.wait_for(int(stand.rate))
    result.take(load.ledger)
    return result


def gateway_killed(stand: Stand) -> Result:
    """Row 13, SIGKILL; clients try once more at the other gateway."""
    result = Result()
    with stand.load(("gateway-2", "gateway"), retries=1) as load:
        at = stand.kill("gateway-2")
        load.wait_for(int(4 * stand.rate))
        stand.restart("gateway-2")
        load.wait_for(int(stand.rate))
    result.take(load.ledger)
    result.timed("recovery", load.ledger.recovery(at), 2.0)
    return result


def worker_hangs(stand: Stand) -> Result:
    """Row 16: a worker accepts and answers nothing, then goes on."""
    result = Result()
    with stand.load() as load:
        with stand.frozen("worker-2") as at:
            load.wait_for(int(10 * stand.rate))
        _answers_again(load, lambda entry: entry.worker == "worker-2")
    _only_the_first_fail(load.ledger, at, result)
    return result


def engine_hangs(stand: Stand) -> Result:
    """Row 16: one engine of a worker stands still; the worker answers every check of its health."""
    result = Result()
    with stand.load() as load:
        (engine,) = stand.engines("worker-2")
        at = time.monotonic()
        os.kill(engine, signal.SIGSTOP)
        load.wait_for(int(12 * stand.rate))
        os.kill(engine, signal.SIGCONT)
        _answers_again(load, lambda entry: entry.worker == "worker-2")
    _only_the_first_fail(load.ledger, at, result)
    return result


def etcd_emptied(stand: Stand) -> Result:
    """Row 6."""
    result = Result()
    with stand.load() as load:
        stand.kill("etcd")
        shutil.rmtree(stand.suite.state / "etcd")
        stand.suite.start("etcd")
        stand.suite.wait_ready("etcd")
        load.wait_for(int(2 * LEASE * stand.rate))
        # Not soon: a scheduler takes nothing away for a while after the store went back in time.
        result.measured["change carried out s"] = round(stand.change(), 2)
    result.take(load.ledger)
    return result


def watch_compacted(stand: Stand) -> Result:
    """Row 7: while a gateway stands still a worker leaves and history is compacted away."""
    result = Result()
    with stand.frozen("gateway-2"):
        stand.ask_to_stop("worker-1")
        stand.compact()
    with stand.load(("gateway-2",)) as load:
        load.wait_for(int(2 * stand.rate))
        stand.restart("worker-1")
        _answers_again(load, lambda entry: entry.worker == "worker-1")
    result.take(load.ledger)
    return result


def worker_slow(stand: Stand) -> Result:
    """Row 16: a worker stands still nine tenths of the time."""
    result = Result()
    with stand.load() as load:
        with stand.slowed("worker-2") as at:
            load.wait_for(int(10 * stand.rate))
        _answers_again(load, lambda entry: entry.worker == "worker-2")
    result.take(load.ledger)
    result.timed("recovery", load.ledger.recovery(at), 5.0)
    return result


def cold_start_herd(stand: Stand) -> Result:
    """Row 17: a thousand requests at once for a model that is not loaded; others have a load all the while."""
    result = Result()
    size = cold_start.prepare(stand)
    before, loads = cold_start.downloaded(stand), cold_start.loads(stand)
    with stand.load() as load:
        at = time.monotonic()
        outcomes = cold_start.herd([stand.address(gateway) for gateway in GATEWAYS])
        end = time.monotonic()
        load.wait_for(int(stand.rate))
    read = [(now - then) / size for now, then in zip(cold_start.downloaded(stand), before, strict=True)]
    loads = cold_start.loads(stand) - loads
    stand.client.undeploy(cold_start.HERD)
    result.take(load.ledger)
    result.measured |= {"herd": sum(outcomes.values()), "loads": loads, "blob reads of a node": round(max(read), 2)}
    result.must(cold_start.all_right(outcomes), f"the herd was told {dict(outcomes)}")
    result.must(loads == 1, f"{loads} loads for one model")
    result.must(max(read) < 2, "a node read the file more than once")
    quiet, during = load.ledger.account(until=at), load.ledger.account(at, end)
    result.measured["p99 ms before"] = round(quiet.p99 * 1e3, 1)
    result.timed("p99 of others", during.p99, 1.2 * quiet.p99 + 0.05)
    result.timed("herd answered", end - at, 10.0)
    return result


def rolling_restart(stand: Stand) -> Result:
    """Everything but etcd, one process after the other, by SIGTERM; clients know both gateways."""
    result = Result()
    names = [row.name for row in stand.suite.table() if row.name != "etcd"]
    with stand.load(("gateway", "gateway-2"), retries=1) as load:
        for name in names:
            stand.ask_to_stop(name)
            stand.restart(name)
            if name in GATEWAYS:  # clients come back to it in their own time
                _answers_again(load, lambda entry, name=name: entry.gateway == stand.address(name))  # type: ignore[misc]
        load.wait_for(int(stand.rate))
    result.take(load.ledger)
    result.measured["processes"] = len(names)
    return result


@contextmanager
def _proxied(stand: Stand) -> Iterator[None]:
    """Gateways reach PROXIED through its proxy: its unix socket is gone, and so is the connection to it."""
    stand.unlink_socket(PROXIED)
    for gateway in ("gateway", "gateway-2"):
        stand.ask_to_stop(gateway)
        stand.restart(gateway)
    yield
    stand.ask_to_stop(PROXIED)
    stand.restart(PROXIED)


def _answers_again(load: Load, by: Callable[[Entry], bool]) -> None:
    """Waits until something that is sent from now on is answered by that one."""
    now = time.monotonic()
    wait_until(
        lambda: any(entry.right and by(entry) for entry in list(load.ledger.entries.values()) if entry.sent > now)
    )


def _only_the_first_fail(ledger: Ledger, at: float, result: Result, known: float = 5.0) -> None:
    """Requests may fail that were sent before anybody could know of the fault: not one that was sent later than so many
    seconds after it."""
    failed = [entry.sent - at for entry in ledger.entries.values() if entry.endings and not entry.right]
    late = [after for after in failed if not -known <= after <= known]
    result.take(ledger, most=len(failed))
    result.must(not late, f"{len(late)} requests failed that were sent elsewhere or later")
    result.timed("last failure", max(failed, default=0.0), 3.0)


def _no_stale_commands(stand: Stand, since: int, result: Result) -> None:
    written, stale = stand.stale_commands(since)
    result.measured |= {"assignments written": written, "stale": stale}
    result.must(not stale, f"{stale} of {written} assignments came from a leader of the past")


SCENARIOS = (
    Scenario("1", "worker-killed", "SIGKILL of a worker", "failed ≤ 0.1 %, recovery ≤ 2 s", worker_killed, quick=True),
    Scenario(
        "5",
        "etcd-gone",
        f"SIGKILL of etcd, back after {ETCD_GONE:g} s",
        "failed 0, a change carried out ≤ 5 s after",
        etcd_gone,
    ),
    Scenario("6", "etcd-emptied", "etcd loses all its data", "failed 0, then a change is carried out", etcd_emptied),
    Scenario(
        "7",
        "watch-compacted",
        "a gateway frozen while a worker leaves and etcd is compacted",
        "failed 0",
        watch_compacted,
    ),
    Scenario(
        "10",
        "leader-killed",
        f"SIGKILL of the leader, {KILLS} times",
        "failed 0, takeover ≤ 6 s, stale 0",
        leader_killed,
    ),
    Scenario("11", "leader-frozen", "SIGSTOP of the leader for 15 s", "failed 0, stale 0", leader_frozen),
    Scenario("12", "worker-cut-from-etcd", "no byte between a worker and etcd", "failed ≤ 0.5 %", worker_cut_from_etcd),
    Scenario(
        "12",
        "worker-cut-from-gateways",
        "no byte between a worker and gateways for 8 s",
        "nothing fails but what was there; recovery ≤ 4 s",
        worker_cut_from_gateways,
    ),
    Scenario(
        "13",
        "gateway-stopped",
        "SIGTERM of one of two gateways",
        "failed 0, drain ≤ 30 s",
        gateway_asked_to_stop,
        quick=True,
    ),
    Scenario(
        "13",
        "gateway-killed",
        "SIGKILL of one of two gateways",
        "failed 0 after one retry, duplicated 0",
        gateway_killed,
    ),
    Scenario(
        "16",
        "worker-hangs",
        "SIGSTOP of a worker for 10 s",
        "only what was there fails; avoided ≤ 3 s",
        worker_hangs,
        quick=True,
    ),
    Scenario(
        "16", "engine-hangs", "SIGSTOP of one engine for 12 s", "only what was there fails; avoided ≤ 3 s", engine_hangs
    ),
    Scenario("16", "worker-slow", "a worker stands still 90 % of the time", "failed 0, recovery ≤ 5 s", worker_slow),
    Scenario(
        "17",
        "cold-start-herd",
        f"{cold_start.COUNT} requests at once for a model that is not loaded",
        "all answered by one load, blob reads of a node 1, p99 of others ≤ 1.2 times",
        cold_start_herd,
    ),
    Scenario("22", "rolling-restart", "SIGTERM and start of every process in turn", "failed 0", rolling_restart),
)
