"""Rows 10 and 11 in numbers: leaders killed and frozen again and again, and commands of leaders of the past."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from penstock import errors
from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Put, created
from penstock.cluster.records import from_json, to_json
from penstock.internal.v1.records_pb2 import AssignmentRecord, ReplicaRecord
from tests.fault.ledger import quantile
from tests.fault.result import Result, Scenario, no_stale_commands
from tests.fault.stand import SCHEDULERS, WORKERS, Dress, Stand, wait_until
from tests.harness.etcd import QUICK

TTL = 1.0
"""Seconds of a leader's lease here: an etcd with short elections allows it."""
TIMES = 50
"""Kills, and freezes, of a thorough run."""
FEW = 3
COMMANDS = 1000
"""Stale commands, at each of the two guards."""

SHORT = Dress(flags={"etcd": QUICK, **{name: [f"--lease-seconds={TTL:g}"] for name in SCHEDULERS}})


def leaders_replaced(stand: Stand) -> Result:
    """Kills, then freezes for three leases, each at a random moment of a term; every new leader has something to do."""
    result = Result()
    times = TIMES if stand.thorough else FEW
    chance = random.Random(stand.seed)
    with stand.apart(SHORT) as own, own.load() as load:
        since = own.revision()
        killed = [_killed(own, chance) for _ in range(times)]
        frozen = [_frozen(own, chance, result) for _ in range(times)]
        load.wait_for(int(own.rate))
        no_stale_commands(own, since, result)
    result.take(load.ledger)
    for name, took in (("killed", killed), ("frozen", frozen)):
        result.measured[f"{name} takeover s (p50, p90, max of {times})"] = _spread(took)
        result.timed(f"{name}, takeover at most", max(took), TTL + 1.0)
    return result


def stale_commands(stand: Stand) -> Result:
    """A leader is frozen until another leads; then its term is written with, as it would: by the guarded transaction,
    and, as if that guard were not there, straight to a worker's key."""
    result = Result()
    with stand.load() as load:
        first, old = stand.leader(), int(max(stand.metric(each, "penstock_scheduler_term") for each in SCHEDULERS))
        with stand.frozen(first):
            wait_until(lambda: stand.leader() not in ("", first))
            guarded = stand.ask(_guarded(stand.etcd(), old, COMMANDS))
        # A worker knows of a term when it was told something in it.
        stand.ask(_forget_orders(stand.etcd()))
        wait_until(lambda: stand.ask(_least_term(stand.etcd())) > old)
        stand.change()
        before = sum(stand.events(worker, "stale_assignment_refused") for worker in WORKERS)
        since = stand.revision()
        raw = stand.ask(_raw(stand.etcd(), old, COMMANDS))
        load.wait_for(int(2 * stand.rate))
        refused = sum(stand.events(worker, "stale_assignment_refused") for worker in WORKERS) - before
        followed = stand.ask(_left_ready(stand.etcd(), since))
        stand.change()
    result.take(load.ledger)
    result.measured |= {"by transaction": COMMANDS, "accepted by etcd": guarded}
    result.measured |= {"straight to workers": raw, "seen and refused": refused, "followed": followed}
    result.must(not guarded, f"etcd took {guarded} writes of a leader of the past")
    result.must(not followed, f"workers changed {followed} replicas on the word of a leader of the past")
    result.must(refused > 0, "no worker has seen any of them")
    return result


def _killed(stand: Stand, chance: random.Random) -> float:
    """Seconds until another leads."""
    time.sleep(chance.uniform(0, TTL))
    first = stand.leader()
    at = stand.kill(first)
    wait_until(lambda: stand.leader() not in ("", first))
    took = time.monotonic() - at
    _something_to_do(stand)
    stand.suite.start(first)
    stand.suite.wait_ready(first)
    return took


def _frozen(stand: Stand, chance: random.Random, result: Result) -> float:
    """The same; the frozen one must not lead when it goes on."""
    time.sleep(chance.uniform(0, TTL))
    first = stand.leader()
    with stand.frozen(first) as at:
        wait_until(lambda: stand.leader() not in ("", first))
        took = time.monotonic() - at
        second = stand.leader()
        _something_to_do(stand)
        time.sleep(max(0.0, at + 3 * TTL - time.monotonic()))
    result.must(stand.leader() == second, "the frozen leader leads again without an election")
    return took


def _something_to_do(stand: Stand) -> None:
    """One replica less than there is, or one more; returns when that is so."""
    replicas = len(WORKERS) - 1 if len(stand.replicas()) == len(WORKERS) else len(WORKERS)

    def done() -> bool:
        try:
            stand.client.deploy("add1", replicas=replicas)
        except errors.Unavailable:
            return False
        return True

    wait_until(done)
    wait_until(lambda: len(stand.replicas()) == replicas)


def _spread(took: Sequence[float]) -> str:
    ascending = sorted(took)
    return ", ".join(f"{value:.2f}" for value in (quantile(ascending, 0.5), quantile(ascending, 0.9), ascending[-1]))


async def _guarded(endpoint: str, term: int, times: int) -> int:
    """Writes with a term that is over, by the transaction that leaders use; how many etcd took."""
    etcd = Etcd([endpoint])
    try:
        taken = 0
        for number in range(times):
            key, record = _nothing_for(WORKERS[number % len(WORKERS)], term)
            answer = await etcd.txn([created(keys.LEADER, term)], [Put(key, record)])
            taken += answer.succeeded
        return taken
    finally:
        await etcd.close()


async def _forget_orders(endpoint: str) -> None:
    """Removes all assignments, which is no order: the leader writes them again, in its term."""
    etcd = Etcd([endpoint])
    try:
        for worker in WORKERS:
            await etcd.delete(keys.assignment(worker))
    finally:
        await etcd.close()


async def _least_term(endpoint: str) -> int:
    """Of the assignments; 0 where a worker has none."""
    etcd = Etcd([endpoint])
    try:
        found = (await etcd.range(keys.ASSIGNMENTS)).items
    finally:
        await etcd.close()
    terms = [from_json(AssignmentRecord, item.value).term for item in found]
    return min(terms) if len(terms) == len(WORKERS) else 0


async def _raw(endpoint: str, term: int, times: int) -> int:
    """Writes them straight to the workers' keys, each with a term that is over; how many."""
    etcd = Etcd([endpoint])
    try:
        for number in range(times):
            await etcd.put(*_nothing_for(WORKERS[number % len(WORKERS)], term - number % 3))
        return times
    finally:
        await etcd.close()


def _nothing_for(worker: str, term: int) -> tuple[str, bytes]:
    """An order to stop everything: followed, it would be seen at once."""
    return keys.assignment(worker), to_json(AssignmentRecord(worker=worker, term=max(1, term)))


async def _left_ready(endpoint: str, since: int) -> int:
    """Replicas that have been written or deleted since a revision and are not READY."""
    etcd = Etcd([endpoint])
    try:
        found = (await etcd.range(keys.REPLICAS)).items
    finally:
        await etcd.close()
    here = [from_json(ReplicaRecord, item.value) for item in found]
    return sum(item.mod_revision > since for item in found) + len(WORKERS) - len(here)


SCENARIOS = (
    Scenario(
        "10, 11",
        "leaders-replaced",
        f"SIGKILL of the leader, then SIGSTOP for three leases of {TTL:g} s: {FEW} times each, thorough {TIMES}",
        f"failed 0, takeover ≤ {TTL + 1:g} s, stale 0",
        leaders_replaced,
        quick=True,
    ),
    Scenario(
        "11",
        "stale-commands",
        f"{COMMANDS} assignments of a deposed leader by etcd's guard, {COMMANDS} past it to workers",
        "accepted 0, failed 0",
        stale_commands,
        quick=True,
    ),
)
