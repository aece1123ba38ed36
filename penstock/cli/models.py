"""publish, models, versions, alias, delete."""

from __future__ import annotations

import argparse

from penstock import sources
from penstock.cli import messages, options
from penstock.cli.connect import connected, wait_seconds, watching
from penstock.cli.parser import UsageError
from penstock.cli.show import Screen, size
from penstock.client.upload import Progress
from penstock.v1 import models_pb2 as pb

_STEPS = {"hash": "hashed", "upload": "uploaded"}


async def publish(args: argparse.Namespace, screen: Screen) -> int:
    """Uploads, publishes, and on demand moves an alias and deploys."""
    if args.wait and not args.deploy:
        raise UsageError("--wait waits for a deployment: add --deploy", "penstock publish PATH --deploy --wait")
    async with connected(args) as client:
        with screen.progress() as bar:

            def told(step: Progress) -> None:
                bar(f"{step.file} {_STEPS[step.step]}", step.done, step.total)

            version = await client.publish(args.path, version=args.number, progress=told)
        answer = {}
        screen.note(f"published {version.name}@{version.version}")
        if version.manifest.HasField("build"):
            screen.note(f"its build: penstock builds {version.name}")
        if args.alias:
            before = await client.set_alias(version.name, args.alias, version.version)
            answer["alias"] = {"alias": args.alias, "version": version.version, "previous_version": before}
            screen.note(
                f"{args.alias} points at {version.name}@{version.version}" + (f", before at {before}" if before else "")
            )
        if args.deploy:
            with watching(screen) as on_status:
                deployment = await client.deploy(
                    version.name, version.version, replicas=args.replicas, wait=wait_seconds(args), on_status=on_status
                )
            answer["deployment"] = messages.plain(deployment)
        if answer:
            # As it is now: with its alias, deployed.
            version = await client.version(version.name, version.version)
        answer["version"] = messages.plain(version)
    if screen.as_json:
        screen.data(answer)
        return 0
    _version_table(screen, [version])
    if args.deploy:
        done = "ready" if args.wait else "`penstock status` shows how far it is"
        deployed = next(entry for entry in deployment.versions if entry.version == version.version)
        screen.line(f"deployed {version.name}@{version.version}, {options.wanted_words(deployed)} wanted: {done}")
    else:
        screen.line(f"next: {_next(version)}")
    return 0


async def models(args: argparse.Namespace, screen: Screen) -> int:
    """Lists models."""
    async with connected(args) as client:
        found = [model async for model in client.models(" ".join(args.query), dict(args.tag))]
    if screen.as_json:
        screen.data({"models": [messages.plain(model) for model in found]})
        return 0
    rows = [
        (
            model.name,
            str(model.latest_version),
            str(model.version_count),
            " ".join(f"{alias}→{number}" for alias, number in sorted(model.aliases.items())),
            model.format,
            messages.when(model.update_time),
            _short(model.description),
        )
        for model in found
    ]
    columns = ("NAME", "LATEST", "VERSIONS", "ALIASES", "FORMAT", "UPDATED (UTC)", "DESCRIPTION")
    searched = bool(args.query or args.tag)
    screen.table(columns, rows, empty="no model matches" if searched else "no models yet: `penstock publish PATH`")
    return 0


async def versions(args: argparse.Namespace, screen: Screen) -> int:
    """Lists versions."""
    async with connected(args) as client:
        found = [version async for version in client.versions(args.name)]
    if screen.as_json:
        screen.data({"versions": [messages.plain(version) for version in found]})
    else:
        _version_table(screen, found)
    return 0


async def alias(args: argparse.Namespace, screen: Screen) -> int:
    """Moves or removes an alias."""
    if args.delete == (args.version is not None):
        raise UsageError("give a version to point at, or --delete", "penstock alias NAME ALIAS VERSION | --delete")
    async with connected(args) as client:
        if args.delete:
            await client.delete_alias(args.name, args.alias, expected=args.expect)
            screen.note(f"removed {args.name}@{args.alias}")
            answer = {"name": args.name, "alias": args.alias, "version": None}
        else:
            before = await client.set_alias(args.name, args.alias, args.version, expected=args.expect)
            screen.note(
                f"{args.name}@{args.alias} points at {args.version}" + (f", before at {before}" if before else "")
            )
            answer = {"name": args.name, "alias": args.alias, "version": args.version, "previous_version": before}
    if screen.as_json:
        screen.data(answer)
    return 0


async def delete(args: argparse.Namespace, screen: Screen) -> int:
    """Deletes a version."""
    name, version = args.reference
    async with connected(args) as client:
        await client.delete_version(name, version)
    screen.note(f"deleted {name}@{version}")
    if screen.as_json:
        screen.data({"name": name, "version": version})
    return 0


def _next(version: pb.ModelVersion) -> str:
    """What makes it serve."""
    reference = f"{version.name}@{version.version}"
    if version.manifest.format not in sources.CONVERTING:
        return f"penstock deploy {reference}"
    if version.manifest.HasField("build"):
        return f"deploy what its build makes: penstock builds {version.name}"
    return sources.command(version.name, version.version, version.manifest.format)


def _version_table(screen: Screen, found: list[pb.ModelVersion]) -> None:
    rows = [
        (
            f"{version.name}@{version.version}",
            " ".join(version.aliases),
            "yes" if version.deployed else "",
            size(sum(artifact.size_bytes for artifact in version.artifacts.values())),
            version.manifest.format,
            messages.when(version.create_time),
            version.publisher,
        )
        for version in found
    ]
    screen.table(
        ("VERSION", "ALIASES", "DEPLOYED", "SIZE", "FORMAT", "PUBLISHED (UTC)", "BY"), rows, empty="no versions"
    )


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
