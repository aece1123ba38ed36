"""deploy and undeploy."""

from __future__ import annotations

import argparse

from penstock.cli import messages
from penstock.cli.connect import connected, wait_seconds, watching
from penstock.cli.show import Screen


async def deploy(args: argparse.Namespace, screen: Screen) -> int:
    """Wants a version in so many replicas."""
    name, version = args.reference
    async with connected(args) as client:
        with watching(screen, name) as on_status:
            deployment = await client.deploy(
                name,
                version,
                replicas=args.replicas,
                keep_others=args.keep_others,
                override_gate=args.override_gate,
                wait=wait_seconds(args),
                on_status=on_status,
            )
    if screen.as_json:
        screen.data({"deployment": messages.plain(deployment)})
        return 0
    rows = [
        (
            f"{name}@{entry.version}",
            str(entry.replicas),
            "default" if entry.version == deployment.default_version else "retiring" if entry.retiring else "",
        )
        for entry in deployment.versions
    ]
    screen.table(("VERSION", "WANTED", ""), rows)
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
