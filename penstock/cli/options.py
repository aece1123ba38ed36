"""What a deployment says besides its version, between the command line, messages and words for people (pure)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Final

from penstock import durations
from penstock.cli import windows
from penstock.cli.parser import UsageError
from penstock.v1 import manifest_pb2
from penstock.v1 import models_pb2 as pb

_TARGETS: Final = ("outstanding", "rate", "utilisation")
_SPANS: Final = ("queue_time", "idle_time", "rise_time", "fall_time")
_PLACES: Final = ("selector", "toleration", "affinity", "anti_affinity", "spread", "pinned", "priority")


def scaling(args: argparse.Namespace) -> pb.Scaling | None:
    """What the flags say of replicas that follow demand; None when they say nothing. Raises UsageError."""
    said = [name for name in ("min", "max", *_TARGETS, *_SPANS) if getattr(args, name) is not None]
    if args.schedule:
        said.append("schedule")
    if not said:
        return None
    flag = f"--{said[0].replace('_', '-')}"
    if args.replicas is not None:
        raise UsageError(f"{flag} cannot stand beside --replicas: --min and --max say how many", args.usage)
    if args.max is None:
        raise UsageError(f"{flag} needs --max: the replicas that it may have at most", args.usage)
    made = pb.Scaling(min_replicas=1 if args.min is None else args.min, max_replicas=args.max)
    for name in _TARGETS:
        if getattr(args, name) is not None:
            setattr(made, name, getattr(args, name))
    for name in _SPANS:
        if getattr(args, name) is not None:
            getattr(made, name).FromNanoseconds(getattr(args, name))
    made.schedule.extend(pb.ScaleWindow(**window._asdict()) for window in args.schedule)
    return made


def placement(args: argparse.Namespace) -> manifest_pb2.Placement | None:
    """What the flags say of its place; None when they say nothing, and the manifest decides."""
    if not any(getattr(args, name) not in (None, [], False) for name in _PLACES):
        return None
    return manifest_pb2.Placement(
        selector=dict(args.selector),
        tolerations=args.toleration,
        affinity=args.affinity,
        anti_affinity=args.anti_affinity,
        spread=args.spread or "",
        pinned=args.pinned,
        priority=args.priority or 0,
    )


def wanted_words(version: pb.DeployedVersion) -> str:
    """How many replicas: `2`, or `1 to 4`."""
    if not version.HasField("scaling"):
        return str(version.replicas)
    return f"{version.scaling.min_replicas} to {version.scaling.max_replicas}"


def scaling_words(version: pb.DeployedVersion) -> str:
    """What moves their number; empty when it is fixed."""
    if not version.HasField("scaling"):
        return ""
    said = version.scaling
    parts = [f"{name} {getattr(said, name):g}" for name in _TARGETS if getattr(said, name)]
    parts += [
        f"{name.replace('_', ' ')} {durations.words(getattr(said, name).ToNanoseconds())}"
        for name in _SPANS
        if said.HasField(name)
    ]
    parts += [windows.words(item.days, item.begin, item.end, item.replicas) for item in said.schedule]
    return "; ".join(parts) or "on demand"


def placement_words(version: pb.DeployedVersion) -> str:
    """Where it runs, as its deployment says; `as its manifest says` when it does not."""
    if not version.HasField("placement"):
        return "as its manifest says"
    return "; ".join(_placement_parts(version.placement)) or "anywhere"


def _placement_parts(place: manifest_pb2.Placement) -> Iterator[str]:
    if place.selector:
        yield "selector " + ",".join(f"{key}={place.selector[key]}" for key in sorted(place.selector))
    for name in ("tolerations", "affinity", "anti_affinity"):
        if listed := getattr(place, name):
            yield f"{name.replace('_', '-')} {','.join(listed)}"
    if place.spread:
        yield f"spread {place.spread}"
    if place.pinned:
        yield "pinned"
    if place.priority:
        yield f"priority {place.priority}"
