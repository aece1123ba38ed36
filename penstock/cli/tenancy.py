"""What can be typed about tenants: commands with their arguments, as in parser.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from penstock.cli.arguments import caller, positive, target

Command = Callable[..., argparse.ArgumentParser]


def add(command: Command, below: Callable[[argparse.ArgumentParser], Command]) -> None:
    """Adds them; command: makes a command of its name, help, function and examples; below: makes such of another's."""
    tenants = command(
        "tenant",
        "say who may call which models, and how much of that at a time",
        "",
        [
            "penstock tenant set fraud-team --model 'fraud-*' --rate 100 --burst 200 --concurrent 50",
            "penstock tenant set default --model '*' --rate 10   # each caller of whom nothing else is said",
            "penstock tenant list",
            "penstock tenant delete fraud-team",
        ],
        "A tenant has the name of a caller, as in the gateway's auth_file. While nothing is said of it, and there is "
        "no default, it may do everything.",
    )
    one = below(tenants)
    _set(one)
    show = one("show", "show what one tenant may do", "penstock.cli.tenants:show", ["penstock tenant show fraud-team"])
    show.add_argument("name", type=caller, metavar="NAME")
    one("list", "list tenants", "penstock.cli.tenants:listed", ["penstock tenant list", "penstock tenant list --json"])
    delete = one(
        "delete",
        "forget what was said of a tenant",
        "penstock.cli.tenants:delete",
        ["penstock tenant delete fraud-team"],
        "The default holds for it then, and if there is none, it may do everything.",
    )
    delete.add_argument("name", type=caller, metavar="NAME")


def _set(one: Command) -> None:
    said = one(
        "set",
        "say what a tenant may do, in place of all that was said before",
        "penstock.cli.tenants:set_tenant",
        [
            "penstock tenant set fraud-team --model 'fraud-*' --rate 100 --burst 200 --concurrent 50",
            "penstock tenant set reports --model digits --model minilm",
            "penstock tenant set default --no-models            # whoever is not named may call nothing",
        ],
        "Who asks for a model that is not his is refused (403), as is who asks too often or too much at a time (429, "
        "with the time to come again).",
    )
    said.add_argument("name", type=caller, metavar="NAME", help="a caller's name, or `default` for everybody else")
    models = said.add_mutually_exclusive_group(required=True)
    models.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a model's name, the beginning of names such as 'fraud-*', or '*'; repeat",
    )
    models.add_argument("--no-models", action="store_true", help="it may call none")
    said.add_argument("--rate", type=target, default=0.0, metavar="X", help="requests a second; else no limit")
    said.add_argument(
        "--burst", type=positive, default=0, metavar="N", help="requests at once after a pause; else a second's worth"
    )
    said.add_argument(
        "--concurrent", type=positive, default=0, metavar="N", help="requests under way at a time; else no limit"
    )
