"""Runs one command: parses, calls, turns a failure into a message, a hint and an exit code."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Final

from penstock import errors
from penstock.cli.parser import NothingHere, UsageError, build
from penstock.cli.show import Screen

USAGE: Final = 2
INTERRUPTED: Final = 130
_EXIT: Final[tuple[tuple[type[errors.PenstockError], int], ...]] = (
    (errors.NotFound, 3),
    (errors.Unavailable, 4),
    (errors.DeadlineExceeded, 4),
    (errors.ResourceExhausted, 4),
    (errors.AlreadyExists, 5),
    (errors.Conflict, 5),
    (errors.InUse, 5),
    (errors.GateFailed, 5),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; --help and --version leave by SystemExit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Known before parsing, so that a wrong command line is told in the form that a script asked for.
    screen = Screen(as_json="--json" in arguments)
    try:
        parsed = build().parse_args(arguments)
        module, _, function = parsed.run.partition(":")
        outcome = getattr(importlib.import_module(module), function)(parsed, screen)
        code: int = asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome
        screen.flush()
    except UsageError as error:
        screen.error(error.message, hint=error.usage, code="USAGE")
        return USAGE
    except errors.PenstockError as error:
        screen.error(_message(error), hint=hint(error), code=error.code.name, field=error.field)
        return exit_code(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left, as `| head` does. Nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        screen.error(f"{error.filename or 'file'}: {error.strerror or error}", code="OS")
        return 1
    return code


def exit_code(error: errors.PenstockError) -> int:
    """The exit code of an error; `penstock --help` lists them."""
    return next((code for kind, code in _EXIT if isinstance(error, kind)), 1)


def hint(error: errors.PenstockError) -> str:
    """What to do about it, where that can be said."""
    if _no_connection(error):
        return "is it running? `make up` starts one here; --address or PENSTOCK_ADDRESS names another"
    if isinstance(error, errors.Unauthenticated):
        return "set PENSTOCK_TOKEN to a credential that the gateway knows"
    if isinstance(error, errors.NotFound) and not isinstance(error, NothingHere):
        return "`penstock models` lists models, `penstock status` what is deployed"
    if isinstance(error, errors.InUse):
        return "undeploy it and move its aliases first: `penstock undeploy NAME@N`, `penstock alias NAME ALIAS VERSION`"
    if isinstance(error, errors.GateFailed):
        return "`penstock builds NAME` shows the build; `--override-gate REASON` deploys it all the same, on record"
    if isinstance(error, errors.Conflict):
        return "it has changed meanwhile: `penstock versions NAME` shows how it is now"
    if isinstance(error, errors.Unavailable | errors.DeadlineExceeded):
        return "`penstock status` shows what runs and why something does not"
    return ""


def _message(error: errors.PenstockError) -> str:
    # gRPC's own text names every address it tried, in its own way.
    return "the gateway does not answer" if _no_connection(error) else error.message


def _no_connection(error: errors.PenstockError) -> bool:
    return isinstance(error, errors.Unavailable) and error.message.startswith("failed to connect")
