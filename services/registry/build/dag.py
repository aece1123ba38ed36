"""What a job does and in which order (pure): steps with ids, what each reads, what can run, and the key of a result.

A step reads only what earlier ones wrote, so a job has no cycle by the way it is written down. A reference is text:
`source.<role>` for a file of the version, `<id>.<role>` for what a step wrote, or the digest of an uploaded artifact.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

from penstock import names
from penstock.errors import InvalidArgument

MAX_STEPS: Final = 32
MAX_TARGETS: Final = 16
SOURCE: Final = "source"
MODEL: Final = "model"
COMPILE: Final = "compile"
ONNX_FORMATS: Final = frozenset({"onnx", "tensorrt"})
"""Formats whose model is an ONNX file."""

_ID = re.compile(r"[a-z][a-z0-9-]{0,40}")
ROLE: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True, slots=True)
class Asked:
    """One step as it was asked for; id and inputs may be left out."""

    step: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Input:
    """A role that a step reads. several: beside it there may be `<name>-2`, `<name>-3`, ..."""

    name: str
    required: bool = True
    several: bool = False


@dataclass(frozen=True, slots=True)
class Described:
    """What a step says of itself with these parameters."""

    name: str
    version: int
    canonical: str
    tools: Mapping[str, str]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a job, complete: role → reference of everything that it reads."""

    id: str
    step: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...] = ()


def expand(asked: Sequence[Asked], targets: Sequence[Mapping[str, Any]] = ()) -> tuple[Asked, ...]:
    """The steps with ids, `compile` once per target; raises InvalidArgument."""
    if not asked:
        raise InvalidArgument("spec.steps: there is no step; name one at least", field="spec.steps")
    if len(targets) > MAX_TARGETS:
        raise InvalidArgument(f"spec.targets: at most {MAX_TARGETS} targets", field="spec.targets")
    wanted: list[Asked] = []
    for one in asked:
        if one.step == COMPILE and targets:
            for number, target in enumerate(targets, 1):
                named = f"{one.id}-{number}" if one.id and len(targets) > 1 else one.id
                wanted.append(Asked(one.step, {**one.parameters, **target}, named, one.inputs))
        else:
            wanted.append(one)
    if len(wanted) > MAX_STEPS:
        raise InvalidArgument(f"spec.steps: {len(wanted)} steps; at most {MAX_STEPS} make a job", field="spec.steps")
    taken: set[str] = {one.id for one in wanted if one.id}
    made: list[Asked] = []
    for index, one in enumerate(wanted):
        name = one.id or _free(one.step, taken)
        taken.add(name)
        if not _ID.fullmatch(name) or name == SOURCE or any(name == before.id for before in made):
            raise _wrong(index, "id", f"{name[:40]!r} cannot be an id here; use a-z, 0-9 and '-', each id once")
        made.append(Asked(one.step, one.parameters, name, one.inputs))
    return tuple(made)


def wire(
    asked: Sequence[Asked],
    described: Sequence[Described],
    source: Mapping[str, str] | set[str],
    *,
    onnx: bool = True,
) -> tuple[Node, ...]:
    """The job: every role of every step with its reference; raises InvalidArgument for what does not fit.

    source: roles of the version's files. A role that a step does not name is the newest file of that role that an
    earlier step writes, else the source's file of that role; `source` is the source's model. onnx: whether that model
    is ONNX; if it is not, `source` is the first model that a step wrote, which the conversion made.
    """
    files = set(source)
    written: dict[str, str] = {}
    outputs: dict[str, tuple[str, ...]] = {}
    nodes = []
    for index, (one, what) in enumerate(zip(asked, described, strict=True)):
        inputs = {role: _reference(index, role, text, files, outputs) for role, text in sorted(one.inputs.items())}
        for role in what.inputs:
            _fill(index, role, inputs, written, files)
        known = {role.name for role in what.inputs}
        several = {role.name for role in what.inputs if role.several}
        for role_name in inputs:
            if role_name not in known and role_name.rpartition("-")[0] not in several:
                raise _wrong(index, "inputs", f"{what.name} reads {', '.join(sorted(known))}; not {role_name[:40]!a}")
        outputs[one.id] = what.outputs
        if MODEL in what.outputs and not onnx:
            written.setdefault(SOURCE, f"{one.id}.{MODEL}")
        written |= {role_name: f"{one.id}.{role_name}" for role_name in what.outputs}
        nodes.append(Node(one.id, one.step, dict(one.parameters), inputs, what.outputs))
    return tuple(nodes)


def needs(node: Node) -> set[str]:
    """Ids of the steps that it reads from."""
    found = set()
    for reference in node.inputs.values():
        head, dot, _ = reference.partition(".")
        if dot and head != SOURCE:
            found.add(head)
    return found


def ready(nodes: Sequence[Node], done: set[str]) -> tuple[Node, ...]:
    """The steps that are not done and whose inputs are there, in the job's order."""
    return tuple(node for node in nodes if node.id not in done and needs(node) <= done)


def digests(
    node: Node,
    source: Mapping[str, str],
    outputs: Mapping[str, Mapping[str, str]],
    optional: AbstractSet[str] = frozenset(),
) -> dict[str, str]:
    """Digest by role of what a step reads; raises InvalidArgument when an earlier step did not write it.

    optional: roles that may be left out when the file was not written.
    """
    found = {}
    for role, reference in node.inputs.items():
        head, dot, tail = reference.partition(".")
        if not dot:
            found[role] = reference
            continue
        files = source if head == SOURCE else outputs.get(head, {})
        if tail in files:
            found[role] = files[tail]
        elif role not in optional:
            raise InvalidArgument(f"step {node.id} reads {reference}, which was not written")
    return found


def key(inputs: Mapping[str, str], described: Described) -> str:
    """The key of a result: equal keys, equal outputs."""
    parts = [sorted(inputs.items()), described.name, described.version, described.canonical]
    text = json.dumps([*parts, sorted(described.tools.items())], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def result(nodes: Sequence[Node], outputs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Digest by role of the newest file of every role that the job wrote."""
    newest: dict[str, str] = {}
    for node in nodes:
        newest |= outputs.get(node.id, {})
    return newest


def failed_checks(reports: Sequence[Mapping[str, Any]]) -> tuple[bool, tuple[str, ...]]:
    """Whether there was a gate among these reports, and the checks that failed, one text each."""
    gated, failed = False, []
    for report in reports:
        if report.get("verdict") not in ("passed", "failed"):
            continue
        gated = True
        if report["verdict"] == "failed":
            texts = [_check(check) for check in _list(report.get("checks")) if _has_failed(check)]
            failed += texts or ["the gate failed"]
    return gated, tuple(text[:300] for text in failed[:32])


def _has_failed(check: Any) -> bool:
    return isinstance(check, Mapping) and (check.get("passed") is False or check.get("verdict") == "failed")


def _check(check: Mapping[str, Any]) -> str:
    name = str(check.get("name") or check.get("check") or "check")
    text = str(check.get("text") or check.get("reason") or "")
    return " ".join(f"{name}: {text}".split()) if text else name


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _fill(index: int, role: Input, inputs: dict[str, str], written: Mapping[str, str], files: set[str]) -> None:
    """Gives a role the reference that it has when nobody says otherwise."""
    if role.name not in inputs:
        if role.name in written:
            inputs[role.name] = written[role.name]
        elif role.name == SOURCE and MODEL in files and SOURCE not in files:
            inputs[role.name] = f"{SOURCE}.{MODEL}"
        elif role.name in files:
            inputs[role.name] = f"{SOURCE}.{role.name}"
        elif role.required:
            raise _wrong(index, "inputs", f"{role.name} is missing; the version has {', '.join(sorted(files))}")
    number = 2
    while role.several and ((name := f"{role.name}-{number}") in inputs or name in files):
        inputs.setdefault(name, f"{SOURCE}.{name}")
        number += 1


def _reference(index: int, role: str, text: str, files: set[str], outputs: Mapping[str, tuple[str, ...]]) -> str:
    if not ROLE.fullmatch(role):
        raise _wrong(index, "inputs", f"{role[:40]!a} cannot be a role")
    if text.startswith("sha256:"):
        return names.digest(text, f"spec.steps[{index}].inputs.{role}")
    head, dot, tail = text.partition(".")
    known = files if head == SOURCE else outputs.get(head, ())
    if not dot or tail not in known:
        there = [f"{SOURCE}.{one}" for one in sorted(files)]
        there += [f"{step}.{one}" for step, roles in outputs.items() for one in roles]
        raise _wrong(index, f"inputs.{role}", f"{text[:80]!a} is not there; there are {', '.join(there[:20])}")
    return text


def _free(step: str, taken: set[str]) -> str:
    number, name = 2, step
    while name in taken:
        name, number = f"{step}-{number}", number + 1
    return name


def _wrong(index: int, field_name: str, text: str) -> InvalidArgument:
    path = f"spec.steps[{index}].{field_name}"
    return InvalidArgument(f"{path}: {text}", field=path)
