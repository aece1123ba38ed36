"""Faults of one member of a store of three: whoever leads the members is lost in each way, under load."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.fault import store
from tests.fault.result import LEASE, Result, Scenario
from tests.fault.stand import GATEWAYS, SCHEDULERS, WORKERS, Dress, Stand
from tests.harness.etcd import EtcdProcess
from tests.harness.etcd_cluster import EtcdCluster

Way = tuple[Callable[[], object], Callable[[], object]]
"""What is done to a member, and what mends it."""


def member_lost(stand: Stand) -> Result:
    """Row 5, of three members: serving and changes go on, and no lease is lost with the member."""
    result = Result()
    with ExitStack() as held:
        cluster = EtcdCluster(Path(held.enter_context(tempfile.TemporaryDirectory(prefix="members-"))))
        held.callback(cluster.stop)
        cluster.start()
        told = (f"--etcd={','.join(cluster.endpoints)}",)
        everybody = ("registry", *SCHEDULERS, *WORKERS, *GATEWAYS)
        dress = Dress(flags=dict.fromkeys(everybody, told), store=cluster.endpoints[0])
        own = held.enter_context(stand.apart(dress))
        load = held.enter_context(own.load())
        assert own.ask(store.registered(own.etcd())) >= set(WORKERS), "the suite does not use these members"
        lost = 0
        for word in ("killed", "frozen", "cut off"):
            member = cluster.leader()
            own.store_at = next(other.endpoint for other in cluster.members if other is not member)
            since = own.revision()
            harm, mend = _ways(cluster, member)[word]
            harm()
            result.timed(f"{word}: change carried out", own.change(), 2 * LEASE)
            load.wait_for(int(LEASE * own.rate))  # longer than any lease would last without its member
            lost += own.ask(store.removed(own.etcd(), since))
            mend()
            own.settle()
        result.measured["leases lost"] = lost
        result.must(not lost, f"{lost} workers lost their lease with a member")
    result.take(load.ledger)
    return result


def _ways(cluster: EtcdCluster, member: EtcdProcess) -> dict[str, Way]:
    return {
        "killed": (member.kill, member.start),
        "frozen": (member.freeze, member.thaw),
        "cut off": (lambda: cluster.isolate(member), cluster.rejoin),
    }


SCENARIOS = (
    Scenario(
        "5",
        "member-lost",
        "of three members of etcd the leading one is killed, frozen, cut off from the others",
        "failed 0, no lease lost, a change carried out ≤ 10 s",
        member_lost,
    ),
)
