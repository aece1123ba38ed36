"""gc: frees the registry's disk."""

from __future__ import annotations

import argparse

from penstock.cli import messages
from penstock.cli.connect import connected
from penstock.cli.show import Screen, size
from penstock.v1 import storage_pb2 as pb

_WHY = {
    "versions": "named by versions",
    "builds": "named by builds that wait or run",
    "cache": "results and plans of builds",
    "new": "new, or asked for lately",
}


async def gc(args: argparse.Namespace, screen: Screen) -> int:
    """Collects, says what would go, or lists what went."""
    async with connected(args) as client:
        if args.list:
            return _list(await client.collections(), screen)
        made = await client.collect(dry_run=args.dry_run)
    if screen.as_json:
        screen.data({"collection": messages.plain(made)})
    else:
        _show(made, screen)
    return 0


def _list(found: list[pb.Collection], screen: Screen) -> int:
    if screen.as_json:
        screen.data({"collections": [messages.plain(one) for one in found]})
        return 0
    rows = [
        (
            messages.when(one.time),
            one.who or "(the registry)",
            f"{one.freed_artifacts}, {size(one.freed_bytes)}",
            f"{one.evicted_results} results, {one.evicted_plans} plans",
            f"{one.kept_artifacts}, {size(sum(one.kept_bytes.values()))}",
            "ended early" if one.partial else "",
        )
        for one in found
    ]
    columns = ("WHEN (UTC)", "BY", "FREED", "FORGOTTEN", "KEPT", "")
    screen.table(columns, rows, empty="nothing was collected so far")
    return 0


def _show(made: pb.Collection, screen: Screen) -> None:
    rows = [(one.digest, size(one.size_bytes)) for one in made.largest]
    if rows:
        screen.table(("ARTIFACT", "SIZE"), rows)
    freed = "would free" if made.dry_run else "freed"
    screen.line(f"{freed} {_artifacts(made.freed_artifacts)}, {size(made.freed_bytes)}")
    if made.evicted_results or made.evicted_plans:
        forgets = "would forget" if made.dry_run else "forgot"
        screen.line(f"{forgets} {made.evicted_results} results and {made.evicted_plans} plans of builds")
    kept = [f"{size(made.kept_bytes[why])} {words}" for why, words in _WHY.items() if why in made.kept_bytes]
    screen.line(f"kept {_artifacts(made.kept_artifacts)}" + (f": {', '.join(kept)}" if kept else ""))
    if made.partial:
        screen.line("ended early, because the registry stopped: run it again")


def _artifacts(count: int) -> str:
    return "1 artifact" if count == 1 else f"{count} artifacts"
