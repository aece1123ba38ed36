"""Is what was asked for running, and if not, why (pure: reads a ClusterStatus, decides nothing else)."""

from __future__ import annotations

from penstock.v1 import cluster_pb2 as pb
from penstock.v1 import models_pb2 as models

_LABELS = {
    pb.REPLICA_STATE_UNSPECIFIED: "unknown",
    pb.REPLICA_STATE_ASSIGNED: "assigned",
    pb.REPLICA_STATE_PULLING: "pulling",
    pb.REPLICA_STATE_LOADING: "loading",
    pb.REPLICA_STATE_READY: "ready",
    pb.REPLICA_STATE_DRAINING: "draining",
    pb.REPLICA_STATE_FAILED: "failed",
}


def state_label(state: int) -> str:
    """A replica state as a word; a state that this release does not know as its number."""
    return _LABELS.get(state, f"state {state}")  # type: ignore[call-overload, no-any-return]


def is_ready(version: pb.VersionStatus) -> bool:
    """Whether all wanted replicas take requests."""
    return version.ready >= version.wanted


def has_failed(version: pb.VersionStatus) -> bool:
    """Whether some replica could not load while others are still missing."""
    failed = any(replica.state == pb.REPLICA_STATE_FAILED for replica in version.replicas)
    return failed and not is_ready(version)


def explain(version: pb.VersionStatus) -> str:
    """How far a version is and what holds it up, for people: `digits@2: 1 of 2 ready; w1 failed: …; not placed: …`."""
    parts = [f"{version.name}@{version.version}: {version.ready} of {version.wanted} ready"]
    for replica in version.replicas:
        if replica.state != pb.REPLICA_STATE_READY:
            reason = f": {replica.reason}" if replica.reason else ""
            parts.append(f"{replica.worker} {state_label(replica.state)}{reason}")
    if version.unplaced_reason:
        parts.append(f"not placed: {version.unplaced_reason}")
    return "; ".join(parts)


def find(status: pb.ClusterStatus, name: str, version: int) -> pb.VersionStatus | None:
    """The entry of one version, or None."""
    for entry in status.versions:
        if entry.name == name and entry.version == version:
            return entry
    return None


def unmet_deploy(status: pb.ClusterStatus, name: str, wanted: models.DeployedVersion, default: bool) -> str:
    """Why a deployment is not fulfilled yet; empty when it is.

    wanted: as recorded; where demand moves the number of replicas, the least of them are enough. default: whether the
    version should be the default one.
    """
    entry = find(status, name, wanted.version)
    scaled = wanted.HasField("scaling")
    taken_up = entry is not None and (entry.wanted >= wanted.replicas if scaled else entry.wanted == wanted.replicas)
    if entry is None or not taken_up or (default and not entry.default_version):
        return f"{name}@{wanted.version}: the scheduler has not taken the change up yet"
    return "" if entry.ready >= wanted.replicas else explain(entry)


def unmet_undeploy(status: pb.ClusterStatus, name: str, version: int) -> str:
    """What is left of an undeployed version (0: of the whole model); empty when nothing is."""
    left = [v for v in status.versions if v.name == name and version in (0, v.version) and (v.wanted or v.replicas)]
    return "; ".join(f"{v.name}@{v.version}: {len(v.replicas)} replicas left" for v in left)


def unmet_drain(status: pb.ClusterStatus, worker: str) -> str:
    """What is left on a worker that should be empty, and why it has no other place; empty when nothing is left."""
    entry = next((entry for entry in status.workers if entry.id == worker), None)
    if entry is None:
        return ""  # It has left, and what it ran with it.
    if not entry.draining:
        return f"{worker}: the scheduler has not taken the drain up yet"
    left = [version for version in status.versions if any(replica.worker == worker for replica in version.replicas)]
    if not left:
        return ""
    lines = [f"{worker}: {len(left)} replica{'' if len(left) == 1 else 's'} left"]
    for version in left:
        name = f"{version.name}@{version.version}"
        others = [f"{r.worker} {state_label(r.state)}" for r in version.replicas if r.worker != worker]
        stays = version.unplaced_reason and f"stays: {version.unplaced_reason}"
        lines.append(f"{name}: {stays or 'moves' + (': ' + ', '.join(others) if others else '')}")
    return "; ".join(lines)


def unmet_all(status: pb.ClusterStatus, name: str = "") -> str:
    """Why not everything wanted (of one model) is ready; empty when it is. A named model must be there at all."""
    versions = [version for version in status.versions if name in ("", version.name)]
    if name and not versions:
        return f"{name} is not deployed"
    return "; ".join(explain(version) for version in versions if not is_ready(version))
