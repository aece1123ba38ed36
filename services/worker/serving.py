"""A loaded replica as the inference protocol sees it, and the directory that knows which ones there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.v1 import cluster_pb2
from penstock.v1 import manifest_pb2 as pb

from .batcher import Batcher
from .codec import Schema
from .metrics import ReplicaMetrics
from .statistics import Statistics


@dataclass(frozen=True, slots=True)
class Serving:
    """What takes requests for one version. memory_bytes: resident memory of its engine, asked each time."""

    name: str
    version: int
    manifest: pb.Manifest
    schema: Schema
    batcher: Batcher
    statistics: Statistics
    metrics: ReplicaMetrics
    memory_bytes: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a replica is. serving: None while it takes no requests; a DRAINING one still does, for stragglers.

    measured_bytes, measured_device_bytes: what its engine took after the warm-up, of memory and of each device; 0
    while there is none. load_seconds: from its first pull to READY, once it was.
    """

    name: str
    version: int
    state: cluster_pb2.ReplicaState.ValueType
    reason: str
    serving: Serving | None
    measured_bytes: int = 0
    measured_device_bytes: int = 0
    load_seconds: float = 0.0


def word_of(state: cluster_pb2.ReplicaState.ValueType) -> str:
    """A state in logs and metrics, such as `ready`."""
    return cluster_pb2.ReplicaState.Name(state).removeprefix("REPLICA_STATE_").lower()


class Directory(Protocol):
    """What runs on this worker."""

    def find(self, name: str, version: int) -> Standing | None:
        """The replica of that version, if it is assigned here."""
        ...

    def versions(self, name: str) -> Sequence[Standing]:
        """Replicas of a model, lowest version first."""
        ...

    def everything(self) -> Sequence[Standing]:
        """All replicas, by name and version."""
        ...
