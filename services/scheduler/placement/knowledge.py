"""What is known of the cluster, by model, version and worker, and what has changed since the last plan. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from penstock.v1 import cluster_pb2 as pb

from ..snapshot import ClusterSnapshot, Replica, VersionId, Wanted, Worker

State: TypeAlias = pb.ReplicaState.ValueType
_NONE: dict[str, State] = {}


class Knowledge:
    """A ClusterSnapshot that can be changed piece by piece.

    models: what is wanted, by model. told: what workers were told to run, and by version who was. states: what workers
    say, by version. held: workers that are gone and whose assignments stay. changed_models, changed_workers: since
    they were last cleared.
    """

    def __init__(self) -> None:
        self.models: dict[str, tuple[Wanted, ...]] = {}
        self.workers: dict[str, Worker] = {}
        self.told: dict[str, dict[VersionId, Replica]] = {}
        self.told_at: dict[VersionId, set[str]] = {}
        self.states: dict[VersionId, dict[str, State]] = {}
        self.reported: dict[str, set[VersionId]] = {}
        self.held: frozenset[str] = frozenset()
        self.changed_models: set[str] = set()
        self.changed_workers: set[str] = set()

    @property
    def changed(self) -> bool:
        """Whether anything is other than it was when it was last planned."""
        return bool(self.changed_models or self.changed_workers)

    def learn(self, snapshot: ClusterSnapshot) -> None:
        """Takes over a whole snapshot; knowing nothing before."""
        by_model: dict[str, list[Wanted]] = {}
        for item in snapshot.wanted:
            by_model.setdefault(item.id.name, []).append(item)
        for name, items in by_model.items():
            self.want(name, items)
        for worker in snapshot.workers.values():
            self.join(worker.id, worker)
        for name, replicas in snapshot.assignments.items():
            self.tell(name, replicas)
        for (name, version), state in snapshot.states.items():
            self.hear(name, version, state)
        self.hold(snapshot.held)

    def want(self, name: str, items: Iterable[Wanted]) -> None:
        """All that is wanted of one model now; nothing to forget it."""
        self.models[name] = tuple(sorted(items, key=lambda item: item.id))
        if not self.models[name]:
            del self.models[name]
        self.changed_models.add(name)

    def join(self, name: str, worker: Worker | None) -> None:
        """A worker as it is now; None when it is gone."""
        if worker is None:
            self.workers.pop(name, None)
        else:
            self.workers[name] = worker
        self.changed_workers.add(name)

    def tell(self, worker: str, replicas: Iterable[Replica] | None) -> None:
        """What a worker is told to run; None when nothing tells it anything."""
        for version in self.told.pop(worker, ()):
            # Who is told no more may have counted as there, on a worker that was held.
            self.changed_models.add(version.name)
            self.told_at[version].discard(worker)
            if not self.told_at[version]:
                del self.told_at[version]
        if replicas is not None:
            self.told[worker] = {replica.id: replica for replica in replicas}
            for version in self.told[worker]:
                self.told_at.setdefault(version, set()).add(worker)
        self.changed_workers.add(worker)

    def hear(self, worker: str, version: VersionId, state: State | None) -> None:
        """What a worker says of a replica; None when it says nothing any more."""
        if state is None:
            states = self.states.get(version, {})
            states.pop(worker, None)
            if not states:
                self.states.pop(version, None)
            self.reported.get(worker, set()).discard(version)
        else:
            self.states.setdefault(version, {})[worker] = state
            self.reported.setdefault(worker, set()).add(version)
        self.changed_models.add(version.name)

    def hold(self, workers: frozenset[str]) -> None:
        """Which workers' assignments stay though they are gone."""
        self.changed_workers |= workers ^ self.held
        self.held = workers

    def held_replicas(self, worker: str) -> tuple[Replica, ...] | None:
        """The assignment of a worker that is held, None when it is not."""
        if worker not in self.held or worker in self.workers or worker not in self.told:
            return None
        return tuple(sorted(self.told[worker].values()))

    def held_count(self, version: VersionId) -> int:
        """Replicas on workers that are held."""
        if not self.held:
            return 0
        told = self.told_at.get(version, ())
        return sum(1 for worker in told if worker in self.held and worker not in self.workers)

    def ready(self, worker: str, version: VersionId) -> bool:
        """Whether that replica takes requests."""
        return self.states.get(version, _NONE).get(worker) == pb.REPLICA_STATE_READY

    def ready_count(self, version: VersionId) -> int:
        """READY replicas on workers that stay."""
        return sum(
            1
            for name, state in self.states.get(version, _NONE).items()
            if state == pb.REPLICA_STATE_READY and name in self.workers and not self.workers[name].draining
        )

    def is_replaced(self, item: Wanted) -> bool:
        """Whether the model's default version has all that it wants READY, on workers that stay."""
        default = self._default_of(item)
        return default is not None and self.ready_count(default.id) >= default.replicas

    def is_needed(self, item: Wanted) -> bool:
        """Whether a retiring version must be placed anew, since the default version serves nothing yet."""
        default = self._default_of(item)
        return default is None or self.ready_count(default.id) == 0

    def item(self, version: VersionId) -> Wanted | None:
        """What is wanted of a version."""
        return next((item for item in self.models.get(version.name, ()) if item.id == version), None)

    def _default_of(self, item: Wanted) -> Wanted | None:
        return next((other for other in self.models[item.id.name] if other.default), None)
