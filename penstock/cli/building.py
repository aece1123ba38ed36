"""What can be typed about builds and what they leave: commands with their arguments, as in parser.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from penstock.cli.arguments import model, pair, reference


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds them; command: makes a command of its name, help, function and examples."""
    build = command(
        "build",
        "make a smaller, faster or compiled version of a version",
        "penstock.cli.builds:build",
        [
            "penstock build digits                       # what its model.yaml says under `build`",
            "penstock build digits@3 --step 'quantise method=static' --step gate --file samples=s.safetensors --wait",
            "penstock build digits --step 'compile batch.seen=observed' --target architecture=sm_89",
            "penstock build minilm -f build.yaml --wait",
        ],
        "Each --step is its name and its parameters. With --wait, exit code 1 means that it or its gate failed.",
    )
    build.add_argument("reference", type=reference, metavar="NAME[@VERSION]")
    given = build.add_mutually_exclusive_group()
    given.add_argument("--step", action="append", default=[], metavar="'STEP KEY=VALUE ...'", help="one step; repeat")
    given.add_argument("-f", "--spec", metavar="FILE", help="a file with steps, targets and files")
    build.add_argument(
        "--file", action="append", type=pair, default=[], metavar="ROLE=PATH", help="upload a file that steps read"
    )
    build.add_argument(
        "--target", action="append", default=[], metavar="'KEY=VALUE ...'", help="what to compile for; repeat"
    )
    build.add_argument("--wait", action="store_true", help="show its log and wait until it has ended")

    builds = command(
        "builds",
        "list builds, newest first; show one, its log, or cancel it",
        "penstock.cli.builds:builds",
        [
            "penstock builds",
            "penstock builds digits",
            "penstock builds show 3f2a",
            "penstock builds logs 3f2a --follow",
        ],
        "ID is the build's id, or its beginning.",
    )
    builds.add_argument("what", nargs="*", metavar="NAME | show ID | logs ID | cancel ID")
    builds.add_argument("--follow", action="store_true", help="with logs: until the build has ended")

    audit = command(
        "audit",
        "list who deployed what in spite of its gate, and why",
        "penstock.cli.builds:audit",
        ["penstock audit", "penstock audit digits --json"],
    )
    audit.add_argument("name", type=model, nargs="?", metavar="NAME")

    gc = command(
        "gc",
        "free the registry's disk of what nobody needs",
        "penstock.cli.storage:gc",
        ["penstock gc --dry-run", "penstock gc --timeout 600", "penstock gc --list"],
        "Artifacts go that no version and no build names and that nobody has uploaded or asked for lately, and the "
        "results and plans of builds that were not used for longest, where they do not fit into their cache.",
    )
    what = gc.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="say what would go, and change nothing")
    what.add_argument("--list", action="store_true", help="what was freed of late, and who asked for it")
