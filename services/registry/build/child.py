"""The process of one step: `python -m services.registry.build.child <descriptor> <parent's pid> <settings>`.

Reads lines of protocol.py from its end of a socket pair: first which steps it is asked about, which it describes, then
perhaps the order to run one. Its working folder is the step's. Before it imports anything of a step it has given away
what penstock/kit/confinement.py takes. Its output is one `done` or one `failed`; a traceback goes to the operator
only.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from penstock.errors import Internal, PenstockError, ResourceExhausted
from penstock.kit import confinement
from penstock.kit.child import tie_to
from penstock.kit.confinement import Limits

from .protocol import line

_OOM_SCORE: Final = 700
"""Before engines, which have 600: a build can wait."""
_REFUSED: Final = {
    errno.EFBIG: "the step wrote a file larger than a build may",
    errno.ENOSPC: "the builder has no room left",
    errno.EMFILE: "the step opened more files than a build may",
    errno.EAGAIN: "the step started more processes than a build may",
    errno.ENETUNREACH: "the step tried to use the network, which a build has not",
    errno.EADDRNOTAVAIL: "the step tried to use the network, which a build has not",
    errno.EPERM: "the step tried what a build may not",
    errno.ENOMEM: "the step needs more memory than a build may use",
}


class Child:
    """The conversation."""

    def __init__(self, link: socket.socket, find: Any) -> None:
        self._link = link
        self._lines = link.makefile("rb")
        self._find = find
        self._part = 0.0

    def tell(self, kind: str, **content: Any) -> None:
        self._link.sendall(line(kind, **content))

    def ask(self) -> Any:
        """The registry's next line; None when it has gone."""
        data = self._lines.readline()
        return json.loads(data) if data else None

    def describe(self, asked: list[Any]) -> None:
        steps = []
        for one in asked:
            step = self._find(one["step"])
            parameters = step.read(one["parameters"])
            steps.append(
                {
                    "name": step.name,
                    "version": step.version,
                    "canonical": step.canonical(parameters),
                    "tools": step.tools(parameters),
                    "inputs": [
                        {"name": role.name, "required": role.required, "several": role.several} for role in step.inputs
                    ],
                    "outputs": [role.name for role in step.outputs],
                    "secrets": list(step.secrets),
                }
            )
        self.tell("described", steps=steps)

    def run(self, order: Any) -> None:
        from .step import StepContext

        step = self._find(order["step"])
        inputs = {role: Path(path) for role, path in order["inputs"].items()}
        folder = Path.cwd()
        context: StepContext[Any] = StepContext(
            parameters=step.read(order["parameters"]),
            inputs=inputs,
            folder=folder,
            say=lambda text: self.tell("say", text=str(text)[:2000]),
            progress=self._progress,
            threads=order["threads"],
            secrets={name: bytes.fromhex(text) for name, text in order["secrets"].items()},
        )
        step.check_inputs(set(inputs))
        result = step.run(context)
        if confinement.left_behind():
            raise Internal("the step left processes running behind it, which were ended")
        self.tell("done", files=dict(_named(result.files, folder)), report=result.report)

    def _progress(self, part: float) -> None:
        # A line for every hundredth is enough for anybody.
        if part >= self._part + 0.01:
            self._part = part
            self.tell("progress", part=float(part))


def _named(files: Mapping[str, Path], folder: Path) -> Iterator[tuple[str, str]]:
    """Role and file name of every output; one that lies deeper is moved up."""
    for role, path in files.items():
        if Path(path).parent != folder:
            path = Path(path).rename(folder / f"output-{role}")
        yield role, Path(path).name


def failure(error: BaseException) -> PenstockError:
    """The error in public words."""
    if isinstance(error, PenstockError):
        return error
    if isinstance(error, MemoryError):
        return ResourceExhausted("the step needs more memory than a build may use")
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return ResourceExhausted(_REFUSED[error.errno])
    return Internal(f"the step failed inside ({type(error).__name__}); the operator's log says where")


def main(arguments: list[str]) -> int:
    """Serves one step; returns the exit status."""
    link = socket.socket(fileno=int(arguments[0]))
    settings = json.loads(arguments[2])
    tie_to(int(arguments[1]), "penstock-build", oom_score=_OOM_SCORE)
    child = Child(link, None)
    problem, open_to = confinement.separate(), "the network is"
    if not problem:
        confinement.fork_within()
        problem, open_to = (
            confinement.hide(settings["hidden"], os.path.dirname(os.getcwd())),
            "the registry's folder is",
        )
        confinement.give_up_capabilities()
    if problem and settings["confined"]:
        text = f"this builder cannot confine a step: {open_to} open to it ({problem}); see `build_unconfined`"
        child.tell("failed", code="UNSUPPORTED", message=text)
        return 1
    if problem:
        child.tell("say", text=f"not confined: {open_to} open to this step ({problem})")
    confinement.adopt_orphans()
    try:
        confinement.limit(Limits(**settings["limits"]))
        child = Child(link, importlib.import_module(settings["steps"]).find)
        asked = child.ask()
        if asked is not None:
            child.describe(asked["steps"])
            if order := child.ask():
                child.run(order)
    except BaseException as error:  # whatever a library raises is an answer; only a crash ends this process without one
        told = failure(error)
        detail = "" if isinstance(error, PenstockError) else traceback.format_exc()[-8000:]
        child.tell("failed", code=told.code.name, message=told.message[:2000], detail=detail)
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's goodbyes: libraries may wait there for threads of theirs.
    os._exit(status)
