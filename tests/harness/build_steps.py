"""Steps for tests of the build service: small honest ones, and one for every way to misbehave.

`find` is what services.registry.build.child asks, so these run in a real child under real limits.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from penstock.errors import InvalidArgument, InvalidManifest
from services.registry.build.step import Role, Step, StepContext, StepResult

_MODEL = Role("model", "the model")


@dataclass(frozen=True)
class Append:
    """What to append to the model."""

    text: str = "+"


@dataclass(frozen=True)
class Nothing:
    """No parameters."""

    ignored: str = ""


@dataclass(frozen=True)
class Judge:
    """What the gate shall say."""

    passed: bool = True


def append(context: StepContext[Append]) -> StepResult:
    """The model with a text behind it, in a protobuf field that every reader of ONNX passes over (doc_string)."""
    data = context.inputs["model"].read_bytes()
    text = context.parameters.text.encode()
    context.say(f"appending {len(text)} bytes")
    context.progress(0.5)
    path = context.folder / "model"
    path.write_bytes(data + b"\x32" + bytes([len(text)]) + text)
    return StepResult({"model": path}, {"bytes_before": len(data), "bytes_after": path.stat().st_size})


def judge(context: StepContext[Judge]) -> StepResult:
    """A gate that says what it is told to."""
    passed = context.parameters.passed
    check = {"name": "numerics", "passed": passed, "text": "differs by 0.5, tolerance 0.001"}
    return StepResult({}, {"verdict": "passed" if passed else "failed", "checks": [check]})


def plan(context: StepContext[Nothing]) -> StepResult:
    """An engine's plan with its key."""
    data = context.inputs["model"].read_bytes()
    path = context.folder / "plan"
    path.write_bytes(b"plan of " + hashlib.sha256(data).digest())
    key = {
        "source_digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "builder": "none",
        "builder_version": "1",
        "architecture": "any",
        "precision": "fp32",
        "profile": "1",
    }
    return StepResult({"plan": path}, {"engine": key})


def _eat_memory(context: StepContext[Nothing]) -> None:
    held = []
    while True:
        held.append(bytearray(64 << 20))


def _hang(context: StepContext[Nothing]) -> None:
    context.say("hanging")
    while True:
        time.sleep(1000)


def _fork(context: StepContext[Nothing]) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                time.sleep(1000)
        os._exit(0)
    # Returns an answer while a grandchild lives.


def _socket(context: StepContext[Nothing]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.connect(("127.0.0.1", int(context.parameters.ignored or 9)))


def _write_large(context: StepContext[Nothing]) -> None:
    with (context.folder / "large").open("wb") as file:
        while True:
            file.write(bytes(1 << 20))


def _write_many(context: StepContext[Nothing]) -> None:
    number = 0
    while True:
        (context.folder / f"file-{number}").write_bytes(bytes(1 << 20))
        number += 1


def _print_garbage(context: StepContext[Nothing]) -> None:
    os.write(1, b"\x00\xff\x1b[2J" * 100_000)
    os.write(2, b"no end of line " * 100_000)
    os.write(int(sys.argv[1]), b"\x00garbage on the protocol\n")


def _crash(context: StepContext[Nothing]) -> None:
    with mmap.mmap(-1, 4096) as memory:
        del memory
    os.abort()


def _spin(context: StepContext[Nothing]) -> None:
    while True:
        pass


def _refuse(context: StepContext[Nothing]) -> None:
    raise InvalidManifest("operator Foo cannot be converted; replace it", field="files.model")


def _raise(context: StepContext[Nothing]) -> None:
    raise KeyError("a secret of /the/builder")


def _look(context: StepContext[Nothing]) -> None:
    """Says what a step can see of the registry and of other processes."""
    folder = context.parameters.ignored
    context.say(f"sees {json.dumps(sorted(os.listdir(folder)))} processes {_processes()} secrets {_secrets()}")


def _processes() -> int:
    return sum(name.isdigit() for name in os.listdir("/proc"))


def _secrets() -> list[str]:
    return sorted(name for name in os.environ if name.startswith("PENSTOCK"))


def _bad(work: Callable[[StepContext[Nothing]], None]) -> Callable[[StepContext[Nothing]], StepResult]:
    def run(context: StepContext[Nothing]) -> StepResult:
        work(context)
        path = context.folder / "model"
        path.write_bytes(context.inputs["model"].read_bytes())
        return StepResult({"model": path}, {})

    return run


def _link(context: StepContext[Nothing]) -> StepResult:
    (context.folder / "model").symlink_to("/etc/hostname")
    os.link(context.inputs["model"], context.folder / "other")
    return StepResult({"model": context.folder / "other"}, {})


def _no_tools(parameters: Any) -> dict[str, str]:
    return {"tool": "1"}


_BAD = {
    "eat-memory": _eat_memory,
    "hang": _hang,
    "fork": _fork,
    "socket": _socket,
    "write-large": _write_large,
    "write-many": _write_many,
    "print-garbage": _print_garbage,
    "crash": _crash,
    "spin": _spin,
    "refuse": _refuse,
    "raise": _raise,
    "look": _look,
}


def find(name: str) -> Step[Any]:
    """The step of this name."""
    if name == "append":
        return Step(name, 1, "appends", Append, (_MODEL,), (_MODEL,), _no_tools, append)
    if name == "gate":
        source = Role("source", "the source's model")
        return Step(name, 1, "judges", Judge, (_MODEL, source), (), _no_tools, judge)
    if name == "compile":
        return Step(name, 1, "compiles", Nothing, (_MODEL,), (Role("plan", "the plan"),), _no_tools, plan)
    if name == "link":
        return Step(name, 1, "links", Nothing, (_MODEL,), (_MODEL,), _no_tools, _link)
    if name in _BAD:
        return Step(name, 1, "misbehaves", Nothing, (_MODEL,), (_MODEL,), _no_tools, _bad(_BAD[name]))
    raise InvalidArgument(f"there is no step {name[:40]!r}", field="step")
