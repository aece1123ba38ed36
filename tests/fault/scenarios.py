"""The rows of the faults table that are tried: what is done to the suite under load, and what must hold.

Each leaves the stand as it found it. What must hold always (lost, wrong, duplicated, failed beyond what is allowed,
stale commands) makes a row broken; a time that was missed is only told, since a busy machine misses times.
"""

from __future__ import annotations

import os
import shutil
import signal
import time

from tests.fault import cold_start, density, engines, leadership, machine, members, network
from tests.fault.ledger import quantile
from tests.fault.result import LEASE, Result, Scenario, answers_again, no_stale_commands, only_the_first_fail, proxied
from tests.fault.stand import GATEWAYS, PROXIED, SCHEDULERS, USUAL, WORKERS, Stand, wait_until

ETCD_GONE = 30.0
"""Seconds for which etcd is gone."""
SERVING = (*GATEWAYS, *WORKERS)
FRESH = 1.0
"""Seconds after which a gateway that was frozen must know what it has slept through."""
KILLS = 3
"""Leaders killed in a row."""


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
    with stand.load(times=5) as load:  # so that there is a p99 every few seconds
        quiet, used = time.monotonic(), [stand.used(*SERVING)]
        load.wait_for(int(ETCD_GONE * load.rate))
        at = stand.kill("etcd")
        used.append(stand.used(*SERVING))
        wait_until(lambda: not any(stand.metric(name, "penstock_scheduler_leading") for name in SCHEDULERS))
        result.timed("leader steps down", time.monotonic() - at, LEASE)
        time.sleep(max(0.0, at + ETCD_GONE - time.monotonic()))
        used.append(stand.used(*SERVING))
        gone = time.monotonic()
        stand.suite.start("etcd")
        stand.suite.wait_ready("etcd")
        back = time.monotonic()
        result.timed("change carried out", stand.change(), 5.0)
    result.take(load.ledger)
    # What those who serve do besides, for whoever wonders whether the machine or they have moved the p99.
    cost = [
        1e6 * (last - first) / load.ledger.account(since, until).sent
        for first, last, since, until in ((*used[:2], quiet, at), (*used[1:], at, gone))
    ]
    result.measured |= {"CPU µs of a request before": round(cost[0]), "CPU µs without etcd": round(cost[1])}
    before, during = load.ledger.p99(quiet, at), load.ledger.p99(at, back)
    middle = (quiet + at) / 2
    result.measured["p99 ms before"] = round(before * 1e3, 1)
    result.measured["p99 ms without etcd"] = round(during * 1e3, 1)
    # What the machine does to it by itself, for whoever reads the next figure.
    by_itself = load.ledger.p99(middle, at) / load.ledger.p99(quiet, middle) - 1
    result.measured["p99 change by itself %"] = round(100 * by_itself, 1)
    result.at_most("p99 change %", 100 * (during / before - 1), 5.0)
    return result


def leader_killed(stand: Stand) -> Result:
    """Row 10."""
    result = Result()
    since, takeovers = stand.revision(), []
    with stand.load() as load:
        for _ in range(KILLS):
            first = stand.leader()
            at = stand.kill(first)
            wait_until(lambda first=first: stand.leader() not in ("", first))  # type: ignore[misc]
            takeovers.append(time.monotonic() - at)
            stand.change()
            stand.restart(first)
    result.take(load.ledger)
    result.measured["kills"] = KILLS
    result.timed("takeover at most", max(takeovers), LEASE + 1.0)
    no_stale_commands(stand, since, result)
    return result


def leader_frozen(stand: Stand) -> Result:
    """Row 11."""
    result = Result()
    since = stand.revision()
    with stand.load() as load:
        first = stand.leader()
        with stand.frozen(first) as at:
            wait_until(lambda: stand.leader() not in ("", first))
            result.timed("takeover", time.monotonic() - at, LEASE + 1.0)
            stand.change()
            while time.monotonic() - at < 3 * LEASE:
                load.wait_for(int(stand.rate / 2))
        load.wait_for(int(stand.rate))
        stand.change()
        result.must(stand.leader() != first, "the frozen leader leads again without an election")
    result.take(load.ledger)
    no_stale_commands(stand, since, result)
    return result


def worker_cut_from_etcd(stand: Stand) -> Result:
    """Row 12, etcd only: it keeps serving what it has until others have taken over, and comes back."""
    result = Result()
    with stand.load() as load:
        at = time.monotonic()
        stand.to_etcd.hang()
        wait_until(lambda: PROXIED not in stand.replicas())
        load.wait_for(int(2 * stand.rate))
        stand.to_etcd.heal()
        stand.settle()
    result.take(load.ledger, share=0.005)
    result.timed("recovery", load.ledger.recovery(at), 4.0)
    return result


def worker_cut_from_gateways(stand: Stand) -> Result:
    """Row 12, gateways only: connections stay open and carry nothing."""
    result = Result()
    with proxied(stand), stand.load() as load:
        at = time.monotonic()
        stand.to_worker.hang()
        load.wait_for(int(8 * stand.rate))
        stand.to_worker.heal()
        answers_again(load, lambda entry: entry.worker == PROXIED)
    only_the_first_fail(load.ledger, at, result)
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
        answers_again(load, lambda entry: entry.worker == "worker-2")
    only_the_first_fail(load.ledger, at, result)
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
        answers_again(load, lambda entry: entry.worker == "worker-2")
    only_the_first_fail(load.ledger, at, result)
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
    awake = time.monotonic()
    retries = _retries(stand, "gateway-2")
    time.sleep(max(0.0, awake + FRESH - time.monotonic()))
    with stand.load(("gateway-2",)) as load:
        load.wait_for(int(2 * stand.rate))
        stale = _retries(stand, "gateway-2") - retries
        stand.restart("worker-1")
        answers_again(load, lambda entry: entry.worker == "worker-1")
    result.take(load.ledger)
    result.measured["sent to the one that had left"] = int(stale)
    result.must(
        not stale, f"{stale:g} requests were sent to a worker that had left {FRESH:g} s after the gateway went on"
    )
    return result


def _retries(stand: Stand, gateway: str) -> float:
    return stand.metric(gateway, "penstock_gateway_retries_total", code="UNAVAILABLE")


def worker_slow(stand: Stand) -> Result:
    """Row 16: a worker stands still nine tenths of the time."""
    result = Result()
    with stand.load() as load:
        with stand.slowed("worker-2") as at:
            load.wait_for(int(10 * stand.rate))
        answers_again(load, lambda entry: entry.worker == "worker-2")
    result.take(load.ledger)
    result.timed("recovery", load.ledger.recovery(at), 5.0)
    return result


def cold_start_herd(stand: Stand) -> Result:
    """Row 17: a thousand requests at once for a model that is not loaded, again and again, in turns at this suite and
    at another one on the same machine. Others have a load at this one all the while: what a herd at the other suite
    costs them is the machine's part, since all processes share its processors."""
    result = Result()
    before: list[float] = []
    here: list[float] = []
    elsewhere: list[float] = []
    loads, reads, answered = [], [], []
    with stand.apart(USUAL) as other, stand.load(times=5) as load:  # so that a herd's time has requests enough
        took, pause = load.ledger.took, int(load.rate / 2)
        for number in range(2 * cold_start.ROUNDS):
            at, meanwhile = (stand, here) if number % 2 else (other, elsewhere)
            name = f"{cold_start.HERD}-{number + 1}"
            size, had = cold_start.prepare(at, name), cold_start.downloaded(at)
            with cold_start.gathered([at.address(gateway) for gateway in GATEWAYS], name) as process:
                began = time.monotonic()
                load.wait_for(pause)
                herd = cold_start.sent(process)
            load.wait_for(pause)  # until those that were sent meanwhile have ended
            before += took(began, herd.began)
            meanwhile += took(herd.began, herd.ended)
            answered.append(herd.ended - herd.began)
            loads.append(cold_start.loads(at, name))
            reads.append(max((now - then) / size for now, then in zip(cold_start.downloaded(at), had, strict=True)))
            at.client.undeploy(name)
            result.must(herd.all_right, f"a herd was told {dict(herd.outcomes)}")
    result.take(load.ledger)
    result.measured |= {"herds": f"{len(loads)} of {cold_start.COUNT}", "loads of each": max(loads)}
    result.measured |= {"blob reads of a node": round(max(reads), 2), "requests of others": len(here)}
    result.must(set(loads) == {1}, f"{loads} loads, for one model each")
    result.must(max(reads) < 2, "a node read the file more than once")
    quiet, alone, p99 = (quantile(sorted(each), 0.99) * 1e3 for each in (before, elsewhere, here))
    result.measured |= {"p99 ms before": round(quiet, 1), "p99 ms beside a herd elsewhere": round(alone, 1)}
    result.at_most("p99 ms of others", p99, 1.2 * alone)
    result.timed("herds answered", max(answered), 10.0)
    return result


def workers_restarted(stand: Stand) -> Result:
    """Row 17: SIGKILL of all workers at once, their disks emptied, all started at once."""
    result = Result()
    size = cold_start.prepare_everywhere(stand)
    with stand.load() as load:
        at = time.monotonic()
        for worker in WORKERS:
            stand.kill(worker)
        for worker in WORKERS:
            shutil.rmtree(stand.suite.state / worker)  # its cache
            stand.suite.start(worker)
        for worker in WORKERS:
            stand.suite.wait_ready(worker)
        # Records of before last as long as their lease: who answers is asked, and who has read.
        for worker in WORKERS:
            answers_again(load, lambda entry, worker=worker: entry.worker == worker)  # type: ignore[misc]
        wait_until(lambda: min(cold_start.downloaded(stand)) >= size)
        end = time.monotonic()
        stand.settle()
        load.wait_for(int(2 * stand.rate))
    read = [each / size for each in cold_start.downloaded(stand)]
    stand.client.undeploy(cold_start.HERD)
    # A request that came just before lives for as long as its caller waits.
    failed = [entry.sent for entry in load.ledger.entries.values() if entry.endings and not entry.right]
    result.take(load.ledger, most=len(failed))
    result.measured["blob reads of a node"] = ", ".join(f"{each:.2f}" for each in read)
    result.must(all(1 <= each < 2 for each in read), "a node did not read the file once")
    result.must(not [sent for sent in failed if sent > end], "requests failed that were sent when all was ready again")
    result.timed("all ready again", end - at, 2 * LEASE)
    return result


def worker_slower(stand: Stand) -> Result:
    """Row 16: a worker stands still three tenths of the time."""
    result = Result()
    with stand.load() as load:
        with stand.slowed("worker-2", share=0.3) as at:
            load.wait_for(int(10 * stand.rate))
        answers_again(load, lambda entry: entry.worker == "worker-2")
    result.take(load.ledger)
    result.timed("recovery", load.ledger.recovery(at), 5.0)
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
                answers_again(load, lambda entry, name=name: entry.gateway == stand.address(name))  # type: ignore[misc]
        load.wait_for(int(stand.rate))
    result.take(load.ledger)
    result.measured["processes"] = len(names)
    return result


SCENARIOS = (
    Scenario("1", "worker-killed", "SIGKILL of a worker", "failed ≤ 0.1 %, recovery ≤ 2 s", worker_killed, quick=True),
    Scenario(
        "5",
        "etcd-gone",
        f"SIGKILL of etcd, back after {ETCD_GONE:g} s",
        "failed 0, p99 change ≤ 5 %, leader steps down ≤ 5 s, a change carried out ≤ 5 s after",
        etcd_gone,
    ),
    Scenario("6", "etcd-emptied", "etcd loses all its data", "failed 0, then a change is carried out", etcd_emptied),
    Scenario(
        "7",
        "watch-compacted",
        "a gateway frozen while a worker leaves and etcd is compacted",
        f"failed 0, after {FRESH:g} s nothing is sent to that worker",
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
    Scenario("16", "worker-slower", "the same, 30 % of the time", "failed 0, recovery ≤ 5 s", worker_slower),
    Scenario(
        "17",
        "cold-start-herd",
        f"{cold_start.COUNT} requests at once for a model that is not loaded, {cold_start.ROUNDS} times here and as "
        "often at another suite on the same machine",
        "all answered by one load, blob reads of a node 1, p99 of others ≤ 1.2 times that beside a herd elsewhere",
        cold_start_herd,
    ),
    Scenario(
        "17",
        "workers-restarted",
        "SIGKILL of all workers at once, disks emptied, all started at once",
        "blob reads of a node 1, all READY again ≤ 10 s, then failed 0",
        workers_restarted,
    ),
    Scenario("22", "rolling-restart", "SIGTERM and start of every process in turn", "failed 0", rolling_restart),
    *density.SCENARIOS,
    *engines.SCENARIOS,
    *leadership.SCENARIOS,
    *machine.SCENARIOS,
    *members.SCENARIOS,
    *network.SCENARIOS,
)
