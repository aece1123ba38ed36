"""What can be typed: every command with its arguments, its help and an example. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from penstock import __version__
from penstock.cli import building, tenancy
from penstock.cli.arguments import (
    alias,
    count,
    model,
    numbered,
    pair,
    positive,
    priority,
    reference,
    reference_or_numbered,
    seconds,
    span,
    target,
    tenant,
    window,
)
from penstock.errors import NotFound

EXIT_CODES: Final = """\
exit codes:
  0    done
  1    error
  2    wrong usage
  3    not found: no such model, version, alias
  4    unavailable, or not ready in time: try again later
  5    conflict: exists already, is in use, is held back by its gate, or has changed meanwhile
  130  interrupted
"""

INTRODUCTION: Final = """\
Publish models, deploy them, call them, see what runs.

  penstock init model.onnx                     describe an ONNX file in a model.yaml
  penstock publish . --alias prod --deploy     upload it, name it, run it
  penstock infer my-model --input x=[1,2,3]    call it
  penstock status                              what runs where, and why something does not
  penstock explain digits                      why it runs there, and what would make it fit
  penstock drain worker-2 --wait               empty a worker before its machine is stopped
  penstock tenant set team --model 'm-*'       who may call what, and how much of it
"""

ENVIRONMENT: Final = """\
environment:
  PENSTOCK_ADDRESS     the gateway's host:port (default 127.0.0.1:8001)
  PENSTOCK_TOKEN       credential; kept out of the process list, unlike --token
  PENSTOCK_TLS_CA      CAs to verify the gateway by; also PENSTOCK_TLS_CERT, PENSTOCK_TLS_KEY
  PENSTOCK_STATE_DIR   folder of a local run (default ./.penstock), for `penstock logs`
  NO_COLOR             no colours
"""


class UsageError(Exception):
    """The command line is wrong; `usage` shows how it is meant."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.message = message
        self.usage = usage


class NothingHere(NotFound):
    """Not found on this machine, whatever a gateway has."""


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.format_usage().strip())


def build() -> Parser:
    """The whole command line. `run` of the parsed arguments names the function that serves it: `module:function`."""
    parser = Parser(
        prog="penstock",
        description=INTRODUCTION,
        epilog=ENVIRONMENT + "\n" + EXIT_CODES + "\n`penstock COMMAND --help` shows an example of each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"penstock {__version__}")
    _common(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    shared = Parser(add_help=False)
    # Suppressed, so that an option before the command is not overwritten by its absence after it.
    _common(shared, default=argparse.SUPPRESS)

    command = _maker(commands, shared)
    _catalogue(command)
    building.add(command)
    _deploying(command)
    _running(command)
    _workers(command)
    tenancy.add(command, lambda parent: _maker(_below(parent), shared))
    _local(command)
    return parser


Command = Callable[..., Parser]


def _maker(commands: Any, shared: Parser) -> Command:
    """What makes commands. run: empty for one that has others below it."""

    def command(name: str, help: str, run: str, examples: Sequence[str], about: str = "") -> Parser:
        made: Parser = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.{' ' if about else ''}{about}",
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
            allow_abbrev=False,
        )
        if run:
            made.set_defaults(run=run)
        return made

    return command


def _below(parent: argparse.ArgumentParser) -> Any:
    return parent.add_subparsers(title="commands", metavar="COMMAND", dest="subcommand", required=True)


def _catalogue(command: Command) -> None:
    publish = command(
        "publish",
        "upload a model's files and publish its next version",
        "penstock.cli.models:publish",
        ["penstock publish examples/digits", "penstock publish model.yaml --alias prod --deploy --replicas 2 --wait"],
        "Files that the registry has already are not sent again; an upload that breaks goes on where it broke.",
    )
    publish.add_argument("path", metavar="PATH", help="model.yaml, or the folder that holds it")
    publish.add_argument(
        "--number", type=positive, default=0, metavar="N", help="version number to take; else the next"
    )
    publish.add_argument("--alias", type=alias, help="point this alias at the new version")
    publish.add_argument("--deploy", action="store_true", help="deploy the new version")
    _replicas_and_wait(publish)

    models = command(
        "models",
        "list or search models",
        "penstock.cli.models:models",
        ["penstock models", "penstock models digits --tag task=image-classification", "penstock models --json"],
    )
    models.add_argument(
        "query", nargs="*", metavar="QUERY", help="words in name, description, author, framework or tags"
    )
    models.add_argument(
        "--tag", action="append", type=pair, default=[], metavar="KEY=VALUE", help="tag that must be equal"
    )

    versions = command(
        "versions",
        "list the versions of a model, newest first",
        "penstock.cli.models:versions",
        ["penstock versions digits"],
    )
    versions.add_argument("name", type=model, metavar="NAME")

    moved = command(
        "alias",
        "point an alias at a version, or remove it",
        "penstock.cli.models:alias",
        [
            "penstock alias digits prod 3",
            "penstock alias digits prod 3 --expect 2   # only if it points at 2 now",
            "penstock alias digits prod --delete",
        ],
    )
    moved.add_argument("name", type=model, metavar="NAME")
    moved.add_argument("alias", type=alias, metavar="ALIAS")
    moved.add_argument("version", type=positive, nargs="?", metavar="VERSION")
    moved.add_argument("--delete", action="store_true", help="remove the alias")
    moved.add_argument(
        "--expect", type=count, metavar="N", help="only if it points at N now; 0: only if it does not exist"
    )

    delete = command(
        "delete",
        "delete a version that is not deployed and that no alias names",
        "penstock.cli.models:delete",
        ["penstock delete digits@2"],
    )
    delete.add_argument("reference", type=numbered, metavar="NAME@N")


def _deploying(command: Command) -> None:
    deploy = command(
        "deploy",
        "run a version: the newest, a number or an alias",
        "penstock.cli.deployments:deploy",
        [
            "penstock deploy digits",
            "penstock deploy digits@prod --replicas 2 --wait --timeout 120",
            "penstock deploy minilm --min 1 --max 8 --outstanding 4 --queue-time 50ms",
            "penstock deploy minilm --min 0 --max 2 --rate 20 --idle-time 10m --schedule 'mon-fri 08:00-18:00=1'",
            "penstock deploy resnet --selector zone=a --toleration spot --spread required --tenant acme",
            "penstock deploy -f deployment.yaml --dry-run",
        ],
        "Other versions retire once this one is ready. Without options a version runs as it did before, a new one as "
        "the default version does; with any of them, they replace all that was said.",
    )
    deploy.add_argument("reference", type=reference, nargs="?", metavar="NAME[@VERSION]")
    deploy.add_argument("-f", "--file", metavar="FILE", help="apply a file of deployments (docs/cli.md) instead")
    deploy.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    deploy.add_argument("--keep-others", action="store_true", help="leave other versions and the default as they are")
    deploy.add_argument(
        "--override-gate", default="", metavar="REASON", help="deploy it although its gate failed; who and why is kept"
    )
    _replicas_and_wait(deploy)
    _scaling(deploy)
    _placement(deploy)
    deploy.set_defaults(usage=deploy.format_usage().strip())

    deployments = command(
        "deployments",
        "show what should run, as it was asked for",
        "penstock.cli.deployments:deployments",
        ["penstock deployments", "penstock deployments minilm --json"],
        "What does run is shown by `penstock status`.",
    )
    deployments.add_argument("name", type=model, nargs="?", metavar="NAME")

    undeploy = command(
        "undeploy",
        "stop a version, or the whole model",
        "penstock.cli.deployments:undeploy",
        ["penstock undeploy digits@2", "penstock undeploy digits --wait"],
    )
    undeploy.add_argument("reference", type=reference_or_numbered, metavar="NAME[@N]")
    undeploy.add_argument("--wait", action="store_true", help="wait until no replica is left")


def _running(command: Command) -> None:
    infer = command(
        "infer",
        "call a model",
        "penstock.cli.infer:infer",
        [
            "penstock infer digits --input image=@seven.png",
            "penstock infer minilm@prod --input text='how do I reset my password?'",
            "penstock infer adder --input a=[1,2,3] --input b=[4,5,6] --json",
            'echo \'{"inputs":[{"name":"a","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}\' | \\',
            "    penstock infer adder --request -",
        ],
        "NAME=@FILE is the file's content, NAME=TEXT is text for a BYTES input, NAME=[1,2,3] is JSON for any other.",
    )
    infer.add_argument("reference", type=reference, metavar="NAME[@VERSION]")
    given = infer.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--input", action="append", type=pair, default=None, metavar="NAME=VALUE", help="one input; repeat"
    )
    given.add_argument("--request", metavar="FILE", help="a request in the protocol's JSON; - for standard input")
    infer.add_argument("--only", action="append", metavar="OUTPUT", help="ask for this output only; repeat")
    infer.add_argument("--id", default=None, help="request id, under which services log the request")
    infer.add_argument("--priority", type=positive, metavar="LEVEL", help="queue level, 1 the highest")

    status = command(
        "status",
        "show what runs where, and why something does not",
        "penstock.cli.cluster:status",
        ["penstock status", "penstock status digits --wait --timeout 60", "penstock status --watch"],
    )
    status.add_argument("name", type=model, nargs="?", metavar="NAME")
    chosen = status.add_mutually_exclusive_group()
    chosen.add_argument("--watch", action="store_true", help="again after every change, until Ctrl-C")
    chosen.add_argument("--wait", action="store_true", help="until everything wanted is ready")

    explain = command(
        "explain",
        "explain why a model runs where it does, why not elsewhere, and what would make it fit",
        "penstock.cli.cluster:explain",
        ["penstock explain digits", "penstock explain digits@2 --json"],
    )
    explain.add_argument("reference", type=reference_or_numbered, metavar="NAME[@N]")


def _workers(command: Command) -> None:
    drain = command(
        "drain",
        "empty a worker, before its machine is stopped",
        "penstock.cli.cluster:drain",
        ["penstock drain worker-2", "penstock drain worker-2 --wait --timeout 600"],
        "It takes nothing new. Each of its replicas is loaded elsewhere first, then gets the traffic there, then goes; "
        "what fits nowhere else goes on serving where it is. It stays drained, over restarts too, until `penstock "
        "undrain`.",
    )
    drain.add_argument("worker", metavar="WORKER", help="its id, as in `penstock status`")
    drain.add_argument("--wait", action="store_true", help="until it is empty; says what is left, and why")

    undrain = command(
        "undrain",
        "let a drained worker have replicas again",
        "penstock.cli.cluster:undrain",
        ["penstock undrain worker-2"],
        "What has moved away stays where it is.",
    )
    undrain.add_argument("worker", metavar="WORKER", help="its id, as in `penstock status`")


def _local(command: Command) -> None:
    init = command(
        "init",
        "write a model.yaml by reading an ONNX file",
        "penstock.cli.init:init",
        ["penstock init model.onnx", "penstock init model.onnx --name digits -o model.yaml --force"],
    )
    init.add_argument("file", metavar="MODEL.onnx")
    init.add_argument("--name", type=model, help="model name; else made from the file's name")
    init.add_argument("-o", "--output", metavar="FILE", help="manifest to write; else model.yaml beside the model")
    init.add_argument("--force", action="store_true", help="overwrite the manifest")

    imported = command(
        "import",
        "write manifests for a Triton model repository, and publish its versions",
        "penstock.cli.importing:run",
        ["penstock import triton /srv/models", "penstock import triton /srv/models/resnet --publish"],
        "Writes a model.yaml beside each model that Triton would serve. What is not supported is named; exits 1 then.",
    )
    imported.add_argument("source", choices=["triton"], help="whose layout it has")
    imported.add_argument("folder", metavar="DIR", help="the repository, or the folder of one model")
    imported.add_argument("--publish", action="store_true", help="publish each version under its own number")
    imported.add_argument("--force", action="store_true", help="overwrite manifests")

    logs = command(
        "logs",
        "show the logs of a local run",
        "penstock.cli.logs:logs",
        ["penstock logs", "penstock logs gateway --follow", "penstock logs worker --lines 200 --json"],
        "Reads the log folder of a local run; `worker` means worker-1, worker-2 and so on.",
    )
    logs.add_argument(
        "service", nargs="?", default="", metavar="SERVICE", help="a process or all of its kind; else all"
    )
    logs.add_argument("--follow", "-f", action="store_true", help="go on as lines are written, until Ctrl-C")
    logs.add_argument("--lines", "-n", type=count, default=50, metavar="N", help="last N lines of each (default 50)")


def _common(parser: argparse.ArgumentParser, default: Any) -> None:
    group = parser.add_argument_group("connection and output")
    group.add_argument("--address", default=default, metavar="HOST:PORT", help="the gateway; else PENSTOCK_ADDRESS")
    group.add_argument("--token", default=default, help="credential; PENSTOCK_TOKEN is safer")
    group.add_argument("--tls-ca", default=default, metavar="FILE", help="CAs to verify the gateway by; means TLS")
    group.add_argument("--tls-cert", default=default, metavar="FILE", help="certificate to show, if it asks for one")
    group.add_argument("--tls-key", default=default, metavar="FILE", help="key of that certificate")
    group.add_argument(
        "--timeout", type=seconds, default=default, metavar="S", help="seconds for a call (60), or for --wait (300)"
    )
    group.add_argument(
        "--json", action="store_true", default=False if default is None else default, help="JSON for scripts"
    )


def _replicas_and_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replicas", type=positive, metavar="N", help="copies that should run; else as before, or 1")
    parser.add_argument("--wait", action="store_true", help="wait until all of them (with --min: so many) are ready")


def _scaling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "replicas that follow demand", "The most demanding of those given wins, within --min and --max."
    )
    group.add_argument(
        "--min", type=count, metavar="N", help="replicas at least (default 1); 0: none while nobody calls"
    )
    group.add_argument("--max", type=positive, metavar="N", help="replicas at most")
    group.add_argument(
        "--outstanding", type=target, metavar="X", help="requests under way that one replica should have"
    )
    group.add_argument("--rate", type=target, metavar="X", help="requests a second that one replica should have")
    group.add_argument(
        "--queue-time", type=span, metavar="SPAN", help="wait in the queue that is allowed, such as 50ms"
    )
    group.add_argument("--utilisation", type=target, metavar="X", help="busy part of its engines, such as 0.7")
    group.add_argument(
        "--schedule",
        action="append",
        type=window,
        default=[],
        metavar="WINDOW",
        help="replicas at least in a part of the week, in UTC, such as 'mon-fri 08:00-18:00=3'; repeat",
    )
    group.add_argument("--idle-time", type=span, metavar="SPAN", help="without a request, before the last goes (10m)")
    group.add_argument("--rise-time", type=span, metavar="SPAN", help="how long demand asks for more first (5s)")
    group.add_argument("--fall-time", type=span, metavar="SPAN", help="how long demand asks for less first (5m)")


def _placement(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs", "Given at all, they replace what the manifest says.")
    group.add_argument(
        "--selector", action="append", type=pair, default=[], metavar="KEY=VALUE", help="label of the worker; repeat"
    )
    group.add_argument("--toleration", action="append", default=[], metavar="TAINT", help="taint it bears; repeat")
    group.add_argument(
        "--affinity", action="append", type=model, default=[], metavar="NAME", help="model to be near; repeat"
    )
    group.add_argument(
        "--anti-affinity", action="append", type=model, default=[], metavar="NAME", help="model to be kept from; repeat"
    )
    group.add_argument("--spread", choices=("preferred", "required"), help="over failure domains")
    group.add_argument("--pinned", action="store_true", help="never moved or evicted for another model")
    group.add_argument("--priority", type=priority, metavar="N", help="-100 to 100; the higher goes first")
    group.add_argument("--tenant", type=tenant, help="whose reserved capacity it may use")
