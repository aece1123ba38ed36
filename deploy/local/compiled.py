"""Compiles the hot path of gateway and worker with mypyc: `python -m deploy.local.compiled`, or `make compiled`.

Never needed: a process that finds nothing built, or nothing built from these sources, runs interpreted code and says so
when it starts (penstock/kit/compiled.py). What is built is tried in a process of its own before it can be found. Needs
the `dev` environment and a C compiler with Python's headers.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from penstock.kit.compiled import FOLDER, LIST, ROOT, VARIABLE, fingerprint

GROUPS: Final = {
    "penstock_wire": (
        "penstock.wire.call",
        "penstock.wire.http2.answering",
        "penstock.wire.http2.client",
        "penstock.wire.http2.client_side",
        "penstock.wire.http2.connection",
        "penstock.wire.http2.deadlines",
        "penstock.wire.http2.frames",
        "penstock.wire.http2.head",
        "penstock.wire.http2.heads",
        "penstock.wire.http2.hpack",
        "penstock.wire.http2.huffman",
        "penstock.wire.http2.intake",
        "penstock.wire.http2.limits",
        "penstock.wire.http2.messages",
        "penstock.wire.http2.outbound",
        "penstock.wire.http2.replies",
        "penstock.wire.http2.server_side",
        "penstock.wire.http2.turns",
    ),
    "penstock_gateway": (
        "services.gateway.access",
        "services.gateway.admission",
        "services.gateway.balance",
        "services.gateway.demand",
        "services.gateway.ejection",
        "services.gateway.flight",
        "services.gateway.header",
        "services.gateway.held",
        "services.gateway.inference",
        "services.gateway.metrics",
        "services.gateway.pace",
        "services.gateway.room",
        "services.gateway.route_table",
        "services.gateway.routes",
        "services.gateway.upstream",
    ),
    "penstock_worker": (
        "services.worker.batcher",
        "services.worker.batching",
        "services.worker.costs",
        "services.worker.flight",
        "services.worker.lookahead",
        "services.worker.codec",
        "services.worker.head",
        "services.worker.inference",
        "services.worker.metrics",
        "services.worker.rows",
        "services.worker.seat",
        "services.worker.serving",
        "services.worker.staging",
        "services.worker.statistics",
        "services.worker.work",
    ),
}
"""Modules by the library that they become part of: within one, calls and attributes are those of C. Everything that a
request touches every time, and nothing else."""

SAFE_BASES: Final = frozenset(("Exception", "ValueError", "Protocol", "NamedTuple", "Generic"))
"""A compiled class may derive from these and from compiled classes. mypyc says nothing of others and makes objects that
crash the process: it takes their attributes to lie where the other base has its own."""

_TRIAL: Final = """
import importlib, json, sys
from penstock.kit import compiled
found = compiled.activate()
assert found.compiled, found.reason
for name in json.loads(sys.argv[1]):
    assert importlib.import_module(name).__file__.endswith(".so"), name
"""
"""Every module comes up, compiled."""


class CannotCompile(Exception):
    """The message says what is missing or wrong."""


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.compiled", description=__doc__)
    parser.add_argument("--into", type=Path, default=FOLDER, help=f"where what is built goes (default: {FOLDER})")
    options = parser.parse_args(arguments)
    try:
        built = build(options.into.resolve())
    except CannotCompile as problem:
        print(f"compiled: {problem}", file=sys.stderr)
        return 1
    print(f"compiled: {len(modules())} modules in {built}; processes that start from now on run them")
    return 0


def build(into: Path, level: str = "2") -> Path:
    """Compiles all of GROUPS; the folder in which they are found from then on, the only such one of `into`. level: how
    hard the C compiler tries. Raises CannotCompile."""
    built = into / fingerprint()
    if (built / LIST).exists():
        return built
    crashing = list(unsafe())
    if crashing:
        raise CannotCompile(f"not to be compiled: {'; '.join(crashing)}")
    missing = lacking()
    if missing:
        raise CannotCompile(missing)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="under-way-", dir=into) as folder:
        made = Path(folder) / built.name
        _run("-m", "deploy.local.compiler", str(made), level)
        _run("-c", _TRIAL, json.dumps(modules()), trying=folder)
        for old in into.glob(f"*/{LIST}"):
            shutil.rmtree(old.parent)
        made.rename(built)
    return built


def modules() -> list[str]:
    """All of GROUPS."""
    return [name for group in GROUPS.values() for name in group]


def path_of(module: str) -> Path:
    """Its source."""
    return ROOT / f"{module.replace('.', '/')}.py"


def lacking() -> str:
    """What is missing on this machine, empty if nothing."""
    if importlib.util.find_spec("mypyc") is None:
        return "mypyc is not installed: `make dev` does it"
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers are missing (Debian: python3-dev)"
    return ""


def unsafe() -> Iterator[str]:
    """Listed classes with a base that mypyc does not really support."""
    classes = [
        (name, node)
        for name in modules()
        for node in ast.walk(ast.parse(path_of(name).read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    safe = SAFE_BASES | {node.name for _, node in classes}
    for module, node in classes:
        for base in node.bases:
            said = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            if said not in safe:
                yield f"{module}.{node.name} derives from {said}"


def _run(*arguments: str, trying: str = "") -> None:
    environment = {**os.environ, VARIABLE: trying or "off"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotCompile(f"failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())
