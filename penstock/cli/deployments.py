"""deploy, undeploy and deployments: what should run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Final

from penstock.cli import deployment_file, messages, options
from penstock.cli.connect import connected, wait_seconds, watching
from penstock.cli.deployment_file import Change
from penstock.cli.parser import UsageError
from penstock.cli.show import Cell, Screen
from penstock.client import AsyncClient
from penstock.client.cluster import DEFAULT_WAIT
from penstock.v1 import models_pb2 as pb

_COLUMNS: Final = ("VERSION", "WANTED", "BY", "PLACE", "TENANT", "")


async def deploy(args: argparse.Namespace, screen: Screen) -> int:
    """Wants versions to run: one by flags, or those of a file."""
    requests = _requests(args)
    async with connected(args) as client:
        changes = [await _change(client, request) for request in requests] if args.file or args.dry_run else []
        if args.dry_run:
            return _show_changes(changes, screen, dry=True)
        if args.file:
            for request, change in zip(requests, changes, strict=True):
                if change.kind != "none":
                    await _apply(client, request, change.version)
            if args.wait:
                timeout = DEFAULT_WAIT if args.timeout is None else args.timeout
                for name in dict.fromkeys(request.name for request in requests):
                    with watching(screen, name) as on_status:
                        await client.wait_ready(name, timeout=timeout, on_status=on_status)
            return _show_changes(changes, screen, dry=False)
        (request,) = requests
        name, version = args.reference
        with watching(screen, name) as on_status:
            deployment = await client.deploy(
                name,
                version,
                replicas=args.replicas,
                scaling=request.scaling if request.HasField("scaling") else None,
                placement=request.placement if request.HasField("placement") else None,
                tenant=args.tenant,
                keep_others=args.keep_others,
                override_gate=args.override_gate,
                wait=wait_seconds(args),
                on_status=on_status,
            )
    if screen.as_json:
        screen.data({"deployment": messages.plain(deployment)})
        return 0
    screen.table(_COLUMNS, [_row(deployment, entry) for entry in deployment.versions])
    screen.line("ready" if args.wait else f"next: penstock status {name}")
    return 0


async def undeploy(args: argparse.Namespace, screen: Screen) -> int:
    """Wants a version, or a model, gone."""
    name, version = args.reference
    async with connected(args) as client:
        await client.undeploy(name, version, wait=wait_seconds(args))
    screen.note(f"undeployed {name}" + (f"@{version}" if version else ""))
    if screen.as_json:
        screen.data({"name": name, "version": version or None})
    return 0


async def deployments(args: argparse.Namespace, screen: Screen) -> int:
    """Shows what should run."""
    async with connected(args) as client:
        found = [entry for entry in await client.deployments() if args.name in (None, entry.name)]
    if screen.as_json:
        screen.data({"deployments": [messages.plain(entry) for entry in found]})
        return 0
    empty = f"{args.name} is not deployed" if args.name else "nothing is deployed: `penstock deploy NAME`"
    screen.table(_COLUMNS, [_row(entry, version) for entry in found for version in entry.versions], empty=empty)
    return 0


def _requests(args: argparse.Namespace) -> list[pb.DeployRequest]:
    """What the command line asks for; raises UsageError."""
    scaling, placement = options.scaling(args), options.placement(args)
    said = scaling is not None or placement is not None or args.tenant is not None or args.replicas is not None
    if args.file is not None:
        if args.reference or said or args.keep_others:
            raise UsageError("a file says all by itself: leave out NAME and its options", args.usage)
        return deployment_file.read(args.file)
    if args.reference is None:
        raise UsageError("name a model, or a file with -f", args.usage)
    name, version = args.reference
    return [
        pb.DeployRequest(
            name=name,
            version="" if version is None else str(version),
            replicas=args.replicas or 0,
            scaling=scaling,
            placement=placement,
            tenant=args.tenant or "",
            keep_others=args.keep_others,
            keep_options=not said,
        )
    ]


async def _change(client: AsyncClient, request: pb.DeployRequest) -> Change:
    number = (await client.version(request.name, request.version or None)).version
    deployed = next((entry for entry in await client.deployments() if entry.name == request.name), None)
    return deployment_file.change(request, number, deployed)


async def _apply(client: AsyncClient, request: pb.DeployRequest, number: int) -> None:
    scaling = request.scaling if request.HasField("scaling") else None
    await client.deploy(
        request.name,
        number,
        # A file says all of a version; what it leaves out must not stay as it was.
        replicas=request.replicas or (1 if scaling is None else None),
        scaling=scaling,
        placement=request.placement if request.HasField("placement") else None,
        tenant=request.tenant,
        keep_others=request.keep_others,
    )


def _row(deployment: pb.Deployment, version: pb.DeployedVersion) -> tuple[Cell, ...]:
    role = "default" if version.version == deployment.default_version else "retiring" if version.retiring else ""
    return (
        f"{deployment.name}@{version.version}",
        options.wanted_words(version),
        options.scaling_words(version),
        options.placement_words(version),
        version.tenant,
        role,
    )


def _show_changes(changes: Sequence[Change], screen: Screen, *, dry: bool) -> int:
    if screen.as_json:
        screen.data({"changes": [_plain(change) for change in changes]})
        return 0
    for change in changes:
        head = {"create": "new", "update": "changed", "none": "unchanged"}[change.kind]
        screen.styled(f"{change.name}@{change.version}: {head}", "green" if change.kind == "create" else "bold")
        for name, before, after in change.differences:
            screen.line(f"  {name}: {before or 'none'} -> {after or 'none'}")
    if dry and any(change.kind != "none" for change in changes):
        screen.line("nothing was changed: leave --dry-run out to apply it")
    return 0


def _plain(change: Change) -> dict[str, object]:
    return {
        "name": change.name,
        "version": change.version,
        "change": change.kind,
        "differences": [{"field": name, "before": was, "after": now} for name, was, now in change.differences],
    }
