"""What a step of a build is: a description that the runner can read, and `run`, which works on files.

A step is a constant `STEP` of its module in `steps/`. The description is plain values, so that a runner can check a
job, order it and know whether it was done before, without any library of the step. `run` is called in a process of its
own: its folder is empty and its own, its inputs are read-only, it has no network, and it may be killed at any moment.

The key of a result is (digests of the inputs, name, version, canonical parameters, tools): the same key, the same
outputs. So a step draws no randomness but from a seed among its parameters, and what depends on a library says so in
`tools`. Times in a report are the only thing in it that may differ.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from penstock.errors import InvalidArgument, Unsupported

from .parameters import canonical, parse

P = TypeVar("P")

Json = dict[str, Any]


@dataclass(frozen=True)
class Role:
    """A file that a step reads or writes, by what it is for.

    text: one line for people. several: beside `name` there may be `name-2`, `name-3`, ..., in this order.
    """

    name: str
    text: str
    required: bool = True
    several: bool = False


@dataclass(frozen=True)
class StepContext(Generic[P]):
    """What a run is given.

    inputs: role → file to read. folder: the scratch folder; outputs are written there. threads: how many a library may
    use. say: one line for the log, public. progress: the part that is done, 0 to 1, never falling.
    secrets: role → bytes that are no file and enter no key, such as the builder's signing key.
    """

    parameters: P
    inputs: Mapping[str, Path]
    folder: Path
    say: Callable[[str], None]
    progress: Callable[[float], None]
    threads: int = 1
    secrets: Mapping[str, bytes] = field(default_factory=dict)

    def several(self, role: str) -> list[Path]:
        """The files of a role that may be several, in order; empty where there is none."""
        files = [self.inputs[role]] if role in self.inputs else []
        while (name := f"{role}-{len(files) + 1}") in self.inputs:
            files.append(self.inputs[name])
        return files


@dataclass(frozen=True)
class StepResult:
    """What a run gives back.

    files: role → file inside the scratch folder. report: JSON; sizes in bytes, times in milliseconds. The report of
    `gate` has `verdict` ("passed" or "failed") and `checks`; a failed gate is a result, not an error.
    """

    files: Mapping[str, Path]
    report: Json


@dataclass(frozen=True)
class Step(Generic[P]):
    """The description of a step and its work.

    version is raised whenever the same inputs would give other outputs or another meaning. parameters is a frozen
    dataclass; `read` makes it from a document. tools gives library → version for these parameters, and raises
    Unsupported with the extra to install where one is missing; it imports none of them. run raises InvalidManifest or
    InvalidArgument with public words for what the publisher can mend, Unsupported for what is not installed.
    secrets: what StepContext.secrets must hold.
    """

    name: str
    version: int
    text: str
    parameters: type[P]
    inputs: tuple[Role, ...]
    outputs: tuple[Role, ...]
    tools: Callable[[P], dict[str, str]]
    run: Callable[[StepContext[P]], StepResult]
    secrets: tuple[str, ...] = ()

    def read(self, document: Mapping[str, Any]) -> P:
        """The parameters of a document; raises InvalidArgument for an unknown key, a wrong type, a bad value."""
        return parse(self.parameters, document, f"{self.name}.")

    def canonical(self, parameters: P) -> str:
        """The parameters as one JSON text, defaults written out: equal texts, equal parameters."""
        return canonical(parameters)

    def check_inputs(self, roles: Mapping[str, Any] | set[str]) -> None:
        """Raises InvalidArgument where a required role is missing or an unknown one is given."""
        given = set(roles)
        for role in self.inputs:
            if role.required and role.name not in given:
                raise InvalidArgument(f"step {self.name} needs the file {role.name}: {role.text}", field=role.name)
            given.discard(role.name)
            number = 2
            while role.several and f"{role.name}-{number}" in given:
                given.discard(f"{role.name}-{number}")
                number += 1
        if given:
            known = ", ".join(role.name for role in self.inputs)
            raise InvalidArgument(f"step {self.name} takes the files {known}; not {', '.join(sorted(given))}")


def installed(extra: str, *distributions: str) -> dict[str, str]:
    """Distribution → version; raises Unsupported with the extra to install where one is missing. Imports none."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise Unsupported(f"{name} is not installed on this builder (install penstock[{extra}])") from None
    return versions
