"""status and explain: what runs where, and why something does not."""

from __future__ import annotations

import argparse
from contextlib import aclosing
from typing import Final

from penstock.cli import messages
from penstock.cli.connect import connected, wait_seconds, watching
from penstock.cli.show import STATE_STYLES, Cell, Screen, size
from penstock.client import readiness
from penstock.client.cluster import DEFAULT_WAIT
from penstock.errors import PenstockError
from penstock.v1 import cluster_pb2 as pb

OUTCOMES: Final[dict[int, Cell]] = {
    pb.PLACEMENT_OUTCOME_HERE: ("yes", "green"),
    pb.PLACEMENT_OUTCOME_LEAVING: ("leaving", "yellow"),
    pb.PLACEMENT_OUTCOME_HELD: ("held", "yellow"),
    pb.PLACEMENT_OUTCOME_SPARE: "could",
    pb.PLACEMENT_OUTCOME_NOT_HERE: "no",
}


async def status(args: argparse.Namespace, screen: Screen) -> int:
    """Shows the status once, after every change, or when everything is ready."""
    name = args.name or ""
    async with connected(args) as client:
        if args.watch:
            async with aclosing(client.watch_status(name)) as pictures:
                async for picture in pictures:
                    _show(picture, screen, name, again=True)
            return 0
        failure: PenstockError | None = None
        if args.wait:
            timeout = DEFAULT_WAIT if args.timeout is None else args.timeout
            try:
                with watching(screen, name) as on_status:
                    await client.wait_ready(name, timeout=timeout, on_status=on_status)
            except PenstockError as error:
                # What there is, is shown all the same: it says why.
                failure = error
        try:
            _show(await client.status(name), screen, name, again=False)
        except PenstockError as error:
            raise failure or error from None
        if failure is not None:
            raise failure
    return 0


async def explain(args: argparse.Namespace, screen: Screen) -> int:
    """Shows the decision on a model, worker by worker."""
    name, version = args.reference
    async with connected(args) as client:
        versions = await client.explain(name, version)
    if screen.as_json:
        screen.data({"versions": [messages.plain(entry) for entry in versions]})
        return 0
    for number, entry in enumerate(versions):
        if number:
            screen.line()
        head = f"{entry.name}@{entry.version}: {entry.placed} of {entry.wanted} replicas placed"
        screen.styled(head, "green" if entry.placed >= entry.wanted else "red")
        screen.line(f"each needs {entry.needs}")
        rows = [(verdict.worker, OUTCOMES.get(verdict.outcome, "?"), verdict.reason) for verdict in entry.workers]
        screen.table(("WORKER", "RUNS IT", "WHY"), rows, empty="no workers")
        for remedy in entry.remedies:
            screen.line(f"would help: {remedy}")
    return 0


async def drain(args: argparse.Namespace, screen: Screen) -> int:
    """Wants a worker empty, and on demand waits until it is."""
    last = ""

    def told(picture: pb.ClusterStatus) -> None:
        nonlocal last
        text = readiness.unmet_drain(picture, args.worker)
        if text and text != last:
            screen.note(text.replace("; ", "\n  "))
        last = text

    async with connected(args) as client:
        await client.drain(args.worker, wait=wait_seconds(args), on_status=told)
    if screen.as_json:
        screen.data({"worker": args.worker, "draining": True, "empty": True if args.wait else None})
        return 0
    screen.line(f"{args.worker} is empty" if args.wait else f"{args.worker} drains; next: penstock status --watch")
    return 0


async def undrain(args: argparse.Namespace, screen: Screen) -> int:
    """Takes a drain back."""
    async with connected(args) as client:
        await client.undrain(args.worker)
    if screen.as_json:
        screen.data({"worker": args.worker})
    else:
        screen.line(f"{args.worker} takes replicas again")
    return 0


def _show(picture: pb.ClusterStatus, screen: Screen, name: str, *, again: bool) -> None:
    if screen.as_json:
        screen.data(messages.plain(picture), one_line=again)
        return
    if again:
        screen.clear()
    empty = f"{name} is not deployed" if name else "nothing is deployed: `penstock deploy NAME`"
    screen.table(
        ("VERSION", "ALIASES", "READY", "STATE", "SCALING", "WHERE"),
        [version_row(v) for v in picture.versions],
        empty=empty,
    )
    for problem in problems(picture):
        screen.styled(problem, "red")
    if not name:
        screen.line()
        columns = ("WORKER", "ADDRESS", "MEMORY RESERVED", "OFFERED", "ENGINES", "STATE")
        screen.table(columns, [worker_row(worker) for worker in picture.workers], empty="no workers")
        if devices := [device_row(worker, device) for worker in picture.workers for device in worker.devices]:
            screen.line()
            screen.table(("DEVICE", "OF", "NAME", "MEMORY RESERVED", "OFFERED", "STATE"), devices)
        if picture.pools:
            screen.line()
            screen.table(("POOL", "WORKERS", "WANTED", "BOUNDS", "WHY"), [pool_row(pool) for pool in picture.pools])
        screen.line()
        rows = [(s.service, s.id, s.address, "leads" if s.id == picture.leader else "") for s in picture.services]
        screen.table(("SERVICE", "ID", "ADDRESS", ""), rows, empty="no services")
    if not picture.leader:
        screen.styled("no scheduler leads: what runs goes on, nothing new is placed", "yellow")
    screen.flush()


def version_row(version: pb.VersionStatus) -> tuple[Cell, ...]:
    """One wanted version as a row."""
    roles = [*version.aliases, *(["(default)"] if version.default_version else [])]
    where = ", ".join(
        replica.worker
        if replica.state == pb.REPLICA_STATE_READY
        else f"{replica.worker} {readiness.state_label(replica.state)}"
        for replica in version.replicas
    )
    state = version_state(version)
    return (
        f"{version.name}@{version.version}",
        " ".join(roles),
        f"{version.ready}/{version.wanted}",
        (state, STATE_STYLES.get(state, "yellow")),
        scaling_text(version),
        where,
    )


def scaling_text(version: pb.VersionStatus) -> str:
    """Within what its number of replicas moves, and why it is what it is; empty for a fixed number."""
    if not version.HasField("scaling"):
        return ""
    scaling = version.scaling
    text = f"{scaling.min_replicas} to {scaling.max_replicas}"
    waiting = f", {scaling.waiting} wait" if scaling.waiting else ""
    return f"{text}: {scaling.reason}{waiting}" if scaling.reason else f"{text}{waiting}"


def version_state(version: pb.VersionStatus) -> str:
    """One word for how far a version is."""
    if version.retiring:
        return "retiring"
    if version.HasField("scaling") and not version.wanted and not version.replicas:
        return "cold"
    if readiness.is_ready(version):
        return "ready"
    if readiness.has_failed(version):
        return "failed"
    if version.unplaced_reason:
        return "not placed"
    states = {replica.state for replica in version.replicas}
    for state in (pb.REPLICA_STATE_LOADING, pb.REPLICA_STATE_PULLING, pb.REPLICA_STATE_ASSIGNED):
        if state in states:
            return readiness.state_label(state)
    return "waiting"


def problems(picture: pb.ClusterStatus) -> list[str]:
    """A line for everything that a person should know: what is not placed, what failed, what is broken, and why."""
    lines = []
    for version in picture.versions:
        name = f"{version.name}@{version.version}"
        if version.unplaced_reason:
            missing = version.wanted - len(version.replicas)
            lines.append(f"{name}: {max(missing, 1)} of {version.wanted} not placed: {version.unplaced_reason}")
        for replica in version.replicas:
            if replica.state == pb.REPLICA_STATE_FAILED:
                lines.append(f"{name}: failed on {replica.worker}: {replica.reason or 'no reason given'}")
    for worker in picture.workers:
        for device in worker.devices:
            if device.cordoned:
                what = f"{device.kind} {device.index} of {worker.id} was lost again and again and is not used"
                lines.append(f"{what}; see to it, then start the worker anew")
    return lines


def pool_row(pool: pb.PoolStatus) -> tuple[Cell, ...]:
    """One pool as a row; what is in the way matters more than why it should be so."""
    why: Cell = (pool.problem, "red") if pool.problem else pool.reason
    return pool.name, str(pool.workers), str(pool.wanted), f"{pool.least} to {pool.most}", why


def worker_row(worker: pb.WorkerStatus) -> tuple[Cell, ...]:
    """One worker as a row."""
    drains = f"drained by {worker.drained_by}" if worker.drained_by else "draining"
    state: Cell = (drains, "yellow") if worker.draining else ("ready", "green")
    return (
        worker.id,
        worker.address,
        size(worker.reserved_bytes),
        size(worker.memory_bytes),
        " ".join(worker.engines),
        state,
    )


def device_row(worker: pb.WorkerStatus, device: pb.DeviceStatus) -> tuple[Cell, ...]:
    """One device of a worker as a row."""
    state: Cell = ("cordoned", "red") if device.cordoned else ("ready", "green")
    name, reserved, offered = device.name, size(device.reserved_bytes), size(device.memory_bytes)
    return f"{device.kind} {device.index}", worker.id, name, reserved, offered, state
