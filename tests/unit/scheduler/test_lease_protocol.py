"""The whole protocol of leases, terms and assignments, step by step in any order: two schedulers that may both believe
that they lead, workers that read late and read old, a gateway that routes by what it has heard, requests under way.

The decisions are the services' own (judge, orders and plan of a worker, the gateway's table); store, network and
engines are the few lines here. Whatever the order: no worker follows a leader older than one that it has followed, no
two assignments are written in the wrong order, no replica is unloaded under a request, nobody's place is taken who is
in use, and no worker's memory is overbooked. And once everything goes on, who waits is served or is told why not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.errors import Unavailable
from penstock.internal.v1.records_pb2 import AssignmentRecord, DeploymentRecord, ReplicaRecord, WorkerRecord
from penstock.v1 import cluster_pb2 as pb
from penstock.v1.models_pb2 import Scaling
from services.gateway.route_table import RouteTable, view_of
from services.scheduler.demand import Said
from services.scheduler.judge import Judge
from services.scheduler.placement import changes
from services.scheduler.snapshot import VersionId, assignment_record
from services.worker.lifecycle import Identity, Orders, Present, plan

from .world import MIB, version

LOADING, READY, DRAINING = pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_READY, pb.REPLICA_STATE_DRAINING
MEMORY = 100
SIZES = {"a": 60, "b": 60, "c": 90, "huge": 200}
WORKERS = ("w0", "w1")
SCHEDULERS = ("s0", "s1")


@dataclass
class Store:
    """etcd: the newest of every key, and all there ever was of it. term: of the leader key."""

    now: dict[str, tuple[int, Any]] = field(default_factory=dict)
    past: list[tuple[int, str, Any]] = field(default_factory=list)
    term: int = 0

    def put(self, key: str, value: Any) -> int:
        self.past.append((len(self.past) + 1, key, value))
        self.now[key] = (len(self.past), value)
        return len(self.past)


class Follower:
    """Somebody's mirror: the changes up to some moment, its own writes at once. told: called as a mirror calls."""

    def __init__(self, store: Store) -> None:
        self.store, self.seen, self.records = store, 0, dict[str, tuple[int, Any]]()

    def hear(self, count: int) -> None:
        for revision, key, value in self.store.past[self.seen : self.seen + count]:
            self.take(key, revision, value)
        self.seen = min(self.seen + count, len(self.store.past))

    def take(self, key: str, revision: int, value: Any) -> None:
        known, before = self.records.get(key, (0, None))
        if revision > known:
            self.records[key] = (revision, value)
            self.changed(key, before, value)

    def changed(self, key: str, before: Any, now: Any) -> None:
        pass


class Scheduler(Follower):
    """term: in which it believes to lead; 0 for none."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.judge, self.term = Judge(), 0
        self.reported = -1.0

    def changed(self, key: str, before: Any, now: Any) -> None:
        if before is not None or now is not None:
            getattr(self.judge.intake, key.split("/")[0])(before, now)


@dataclass
class Running:
    digest: str
    state: pb.ReplicaState.ValueType = LOADING
    retiring: bool = False
    requests: int = 0


class Worker:
    def __init__(self) -> None:
        self.orders, self.followed = Orders(), 0
        self.replicas: dict[Identity, Running] = {}


@dataclass(eq=False)
class Call:
    """A request. at: the worker that has taken it."""

    model: str
    since: float
    at: str = ""


class Protocol(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.store, self.now = Store(), 1000.0
        for name, memory in SIZES.items():
            wanted = version(memory=memory, scaling=Scaling(max_replicas=2, outstanding=2.0))
            self.store.put(f"deployment/{name}", DeploymentRecord(name=name, versions=[wanted], default_version=1))
        for name in WORKERS:
            self.store.put(f"worker/{name}", WorkerRecord(id=name, memory_bytes=MEMORY * MIB, engines=["onnx"]))
        self.schedulers = {name: Scheduler(self.store) for name in SCHEDULERS}
        self.workers = {name: Worker() for name in WORKERS}
        self.gateway = Follower(self.store)
        self.calls: list[Call] = []
        self.ended: dict[str, float] = {}
        self.elect("s0")

    @rule(who=st.sampled_from(SCHEDULERS))
    def elect(self, who: str) -> None:
        """The lease of whoever led is over in the store; the old leader need not know."""
        self.store.term += 1
        self.schedulers[who].term = self.store.term
        self.schedulers[who].hear(len(self.store.past))

    @rule(
        who=st.sampled_from(SCHEDULERS),
        models=st.lists(st.sampled_from(list(SIZES)), min_size=1, max_size=2),
        pause=st.sampled_from([1.0, 40.0]),
        deaf=st.frozensets(st.sampled_from([*SCHEDULERS, *WORKERS, "gateway", "answers", "reports"]), max_size=3),
    )
    def go_on(self, who: str, models: list[str], pause: float, deaf: frozenset[str]) -> None:
        """Some call, and everything happens once in the usual order, under whoever believes to lead.

        deaf: who does not take part this time: hears nothing, follows nothing, does not answer.
        """
        while "answers" not in deaf and any(call.at for call in self.calls):
            self.finish()
        self.now += pause
        for model in models:
            self.call(model)
        for one in SCHEDULERS:
            if "reports" not in deaf:
                self.report(one)
            self.hear(one, 0 if one in deaf else len(self.store.past))
        self.lead(who)
        for name in WORKERS:
            if name not in deaf:
                self.obey(name, 0)
                self.load(name)
        self.hear("gateway", 0 if "gateway" in deaf else len(self.store.past))
        self.route()

    @rule(who=st.sampled_from(SCHEDULERS))
    def lead(self, who: str) -> None:
        """A leader plans and writes; the store refuses a term that is over."""
        me = self.schedulers[who]
        if not me.term:
            return
        before = {name: me.judge.numbers.wish(VersionId(name, 1)) for name in SIZES}
        planned = me.judge.plan(self.now, 0, frozenset(), leading=True)
        for name in SIZES:
            wish = me.judge.numbers.wish(VersionId(name, 1))
            if wish is not None and wish is not before[name] and wish.reason == "made room for others":
                assert not any(call.model == name and call.since < me.reported for call in self.calls)
        for worker, told in changes(me.judge.intake.planner.known, planned).items():
            if me.term != self.store.term:
                me.term = 0
                return
            record = assignment_record(worker, told, me.term) if told is not None else None
            key = f"assignment/{worker}"
            me.take(key, self.store.put(key, record), record)

    @rule(who=st.sampled_from([*SCHEDULERS, "gateway"]), count=st.integers(1, 3))
    def hear(self, who: str, count: int) -> None:
        (self.gateway if who == "gateway" else self.schedulers[who]).hear(count)

    @rule(name=st.sampled_from(WORKERS), back=st.sampled_from([0, 0, 0, 1, 3]))
    def obey(self, name: str, back: int) -> None:
        """A worker reads its assignment, perhaps an old one, and follows it."""
        worker = self.workers[name]
        read = [value for _, key, value in self.store.past if key == f"assignment/{name}"]
        record: AssignmentRecord | None = read[-1 - back] if len(read) > back else None
        if worker.orders.follow(record, 0):
            if record is not None:
                assert record.term >= worker.followed
                worker.followed = record.term
        else:
            assert record is not None and record.term < worker.followed
        present = {key: Present(found.digest, found.retiring) for key, found in worker.replicas.items()}
        steps = plan(worker.orders.replicas, present)
        for key in steps.retire:
            found = worker.replicas[key]
            found.retiring = True
            if found.state == READY:
                self._announce(name, key, DRAINING)
            else:
                del worker.replicas[key]
                self._announce(name, key, None)
        for assigned in steps.start:
            key = assigned.name, assigned.version
            worker.replicas[key] = Running(assigned.manifest_digest)
            self._announce(name, key, LOADING)

    def load(self, name: str) -> None:
        """What has room in the worker's ledger becomes READY."""
        for key, found in self.workers[name].replicas.items():
            if found.state == LOADING and self._used(name) + SIZES[key[0]] <= MEMORY:
                self._announce(name, key, READY)

    @rule(name=st.sampled_from(WORKERS))
    def drain(self, name: str) -> None:
        """What drains and has no request any more is unloaded."""
        for key, found in list(self.workers[name].replicas.items()):
            if found.state == DRAINING and not found.requests:
                del self.workers[name].replicas[key]
                self._announce(name, key, None)

    def call(self, model: str) -> None:
        self.calls.append(Call(model, self.now))

    def route(self) -> None:
        """The gateway sends on what waits, as far as it has heard of a replica; one that has gone answers so."""
        deployments = [value for key, (_, value) in self.gateway.records.items() if key.startswith("deployment/")]
        said = [v for key, (_, v) in self.gateway.records.items() if key.startswith("replica/") and v is not None]
        models = {d.name: view_of(d, [r for r in said if r.name == d.name]) for d in deployments}
        table = RouteTable().with_models(models)
        for call in self.calls:
            if call.at or call.model not in models:
                continue
            try:
                route = table.resolve(call.model, "")
            except Unavailable:
                continue
            found = self.workers[route.replicas[0].worker].replicas.get((call.model, 1))
            if found is not None and found.state in (READY, DRAINING):
                found.requests += 1
                call.at = route.replicas[0].worker

    @rule()
    def finish(self) -> None:
        """The oldest request that is under way is answered."""
        call = next((call for call in self.calls if call.at), None)
        if call is not None:
            self.workers[call.at].replicas[call.model, 1].requests -= 1
            self.calls.remove(call)
            self.ended[call.model] = self.now

    def report(self, who: str) -> None:
        said = {}
        for model in SIZES:
            mine = [call for call in self.calls if call.model == model]
            waiting = sum(1 for call in mine if not call.at)
            idle = 0.0 if mine or model not in self.ended else self.now - self.ended[model]
            said[VersionId(model, 1)] = Said(outstanding=len(mine), waiting=waiting, idle_seconds=idle)
        self.schedulers[who].judge.report("g1", said, [], self.now)
        self.schedulers[who].reported = self.now

    @invariant()
    def assignments_are_in_the_order_of_terms(self) -> None:
        for name in WORKERS:
            terms = [v.term for _, key, v in self.store.past if key == f"assignment/{name}" and v is not None]
            assert terms == sorted(terms)

    @invariant()
    def nobody_loses_the_replica_that_works_for_him(self) -> None:
        for call in self.calls:
            if call.at:
                assert self.workers[call.at].replicas[call.model, 1].state in (READY, DRAINING)

    @invariant()
    def no_worker_is_told_more_than_it_has(self) -> None:
        for name in WORKERS:
            _, record = self.store.now.get(f"assignment/{name}", (0, None))
            assert record is None or sum(replica.memory_bytes for replica in record.replicas) <= MEMORY * MIB
            assert self._used(name) <= MEMORY

    def teardown(self) -> None:
        """From here on everything goes on: whoever waits is served, or told why not."""
        self.elect("s0")
        for _ in range(60 * len(SIZES)):
            if not self._unexplained():
                return
            self.now += 1.0
            for who in SCHEDULERS:
                self.hear(who, len(self.store.past))
                self.report(who)
            self.lead("s0")
            for name in WORKERS:
                self.obey(name, 0)
                self.load(name)
                self.drain(name)
            self.hear("gateway", len(self.store.past))
            self.route()
            for _ in [call for call in self.calls if call.at]:
                self.finish()
        raise AssertionError(f"{self._unexplained()} wait in vain")

    def _unexplained(self) -> list[str]:
        waiting = {VersionId(call.model, 1) for call in self.calls}
        told = self.schedulers["s0"].judge.estimates(sorted(waiting), self.now, leading=True)
        return [version.name for version in sorted(waiting) if version not in told or not told[version].obstacle]

    def _used(self, name: str) -> int:
        replicas = self.workers[name].replicas
        return sum(SIZES[key[0]] for key, found in replicas.items() if found.state in (READY, DRAINING))

    def _announce(self, name: str, key: Identity, state: pb.ReplicaState.ValueType | None) -> None:
        record = None
        if state is not None:
            self.workers[name].replicas[key].state = state
            record = ReplicaRecord(worker=name, name=key[0], version=key[1], state=state, address=f"{name}:1")
        self.store.put(f"replica/{name}/{key[0]}@{key[1]}", record)


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
