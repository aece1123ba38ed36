"""The routing table kept fresh: mirrors of deployments and replicas in, an immutable RouteTable out.

A request reads `table` and nothing else; a change swaps it as a whole. While etcd is away the mirrors keep what they
last knew, and so does the table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from penstock.errors import NotFound, Unavailable
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord
from penstock.kit.log import get_logger

from .absence import History, RegistryBelief, ReplicaBelief
from .route_table import ModelView, Route, RouteTable, view_of

M_co = TypeVar("M_co", covariant=True)
M = TypeVar("M", DeploymentRecord, ReplicaRecord)

REST, LONGEST_REST = 4.0, 0.5
"""Pause after a rebuild: so many times as long as it took, and seconds at most. Changes that come meanwhile are taken
together."""

UNREAD = "the routing table has not been read yet"

HOLDING_TICK = 1.0
"""Seconds between two looks while something is held that only time can release."""

_log = get_logger()


class Mirrored(Protocol[M_co]):
    """The part of penstock.cluster.watch.Mirror that the table reads."""

    @property
    def records(self) -> Mapping[str, M_co]: ...
    @property
    def rewinds(self) -> int: ...
    @property
    def revision(self) -> int: ...
    async def synced(self) -> None: ...


class RoutingTable:
    """Follows two mirrors. `note_change` is their on_change; `run` rebuilds the models that changed."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        """clock: monotonic seconds; the loop's by default."""
        self.table = RouteTable()
        self.synced = False
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._deployment_belief = RegistryBelief[DeploymentRecord]()
        self._replica_belief = ReplicaBelief()
        self._deployment_history = History()
        self._replica_history = History()
        self._swapped: Callable[[frozenset[str]], None] = lambda models: None
        self._deployments: Mapping[str, DeploymentRecord] = {}
        self._replicas: Mapping[str, ReplicaRecord] = {}

    @property
    def news(self) -> asyncio.Event:
        """Set at the next swap. Take it before looking at the table, so that no change is missed."""
        return self._news

    def on_swap(self, told: Callable[[frozenset[str]], None]) -> None:
        """Has one listener told which models have changed, after each swap; it must not block."""
        self._swapped = told

    def resolve(self, model: str, version: str) -> Route:
        """See RouteTable.resolve. Nothing is NotFound before the table has been read: then it is Unavailable."""
        try:
            return self.table.resolve(model, version)
        except NotFound:
            if not self.synced:
                raise Unavailable(UNREAD, retry_after=1.0) from None
            raise

    def lingers(self, model: str) -> bool:
        """Whether the model is deployed, or a worker still has a replica of it."""
        return model in self.table.models or any(record.name == model for record in self._replicas.values())

    def ready(self) -> str | None:
        """None once the table has been read as a whole; a store that goes away later does not change that."""
        return None if self.synced else UNREAD

    def note_change(self) -> None:
        """Something in the mirrors changed; changes that come together are taken together."""
        self._changed.set()

    def disprove(self, address: str) -> None:
        """A connection to that address failed: stop believing in replicas there that the store no longer has."""
        if self._replica_belief.disprove(address, self._clock()):
            self.note_change()

    @property
    def held(self) -> int:
        """Number of replicas served from though the store no longer has them."""
        return len(self._replica_belief.held)

    @property
    def held_addresses(self) -> frozenset[str]:
        """Workers of those replicas."""
        return frozenset(record.address for record in self._replica_belief.held.values())

    async def run(self, deployments: Mirrored[DeploymentRecord], replicas: Mirrored[ReplicaRecord]) -> None:
        """Follows the mirrors until cancelled."""
        await deployments.synced()
        await replicas.synced()
        while True:
            self._changed.clear()
            began = time.perf_counter()
            self.rebuild(deployments, replicas)
            # A table of ten thousand models takes a while; requests have most of the loop, however much changes.
            await asyncio.sleep(min(LONGEST_REST, REST * (time.perf_counter() - began)))
            timeout = HOLDING_TICK if self._replica_belief.held or self._deployment_belief.held else None
            try:
                async with asyncio.timeout(timeout):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def rebuild(self, deployments: Mirrored[DeploymentRecord], replicas: Mirrored[ReplicaRecord]) -> None:
        """Takes the mirrors as they are now and swaps the table if a model changed."""
        now, held_before = self._clock(), self.held
        rewinds = self._deployment_history.rewinds(deployments.rewinds, deployments.revision)
        wanted = self._deployment_belief.observe(deployments.records, rewinds, now)
        rewinds = self._replica_history.rewinds(replicas.rewinds, replicas.revision)
        present = self._replica_belief.observe(replicas.records, rewinds, now)
        changed = _changed_models(self._deployments, wanted) | _changed_models(self._replicas, present)
        self._deployments, self._replicas = wanted, present
        if self.held != held_before:
            _log.warning("replicas_held", held=self.held, before=held_before)
        if changed:
            self._swap(changed)
        self.synced = True

    def _swap(self, changed: set[str]) -> None:
        by_model: dict[str, list[ReplicaRecord]] = {name: [] for name in changed}
        for record in self._replicas.values():
            if record.name in by_model:
                by_model[record.name].append(record)
        deployments = {record.name: record for record in self._deployments.values() if record.name in changed}
        views: dict[str, ModelView | None] = {
            name: view_of(deployments[name], records) if name in deployments else None
            for name, records in by_model.items()
        }
        self.table = self.table.with_models(views)
        _log.debug("routes_changed", models=sorted(changed))
        news, self._news = self._news, asyncio.Event()
        news.set()
        self._swapped(frozenset(changed))


def _changed_models(before: Mapping[str, M], after: Mapping[str, M]) -> set[str]:
    """Names of the models whose records differ. Mirrors keep the message of an unchanged key, so most compare by
    identity alone."""
    changed = {record.name for key, record in before.items() if key not in after}
    for key, record in after.items():
        old = before.get(key)
        if old is not record and old != record:
            changed.add(record.name)
    return changed
