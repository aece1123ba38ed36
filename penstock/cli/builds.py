"""build, builds, audit."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from penstock.cli import messages
from penstock.cli.connect import connected
from penstock.cli.parser import NothingHere, UsageError
from penstock.cli.show import Screen, size
from penstock.client import AsyncClient
from penstock.client.builds import DEFAULT_WAIT, ENDED, OnLine
from penstock.errors import InvalidArgument
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2

_STATES: dict[int, str] = {
    pb.BUILD_STATE_PENDING: "waits",
    pb.BUILD_STATE_RUNNING: "runs",
    pb.BUILD_STATE_SUCCEEDED: "done",
    pb.BUILD_STATE_FAILED: "failed",
    pb.BUILD_STATE_CANCELLED: "cancelled",
}
_STYLES = {"runs": "yellow", "done": "green", "failed": "bold red"}
_GATES: dict[int, str] = {
    pb.GATE_VERDICT_UNSPECIFIED: "",
    pb.GATE_VERDICT_PASSED: "passed",
    pb.GATE_VERDICT_FAILED: "failed",
}
_USAGE = "penstock builds [NAME | show ID | logs ID | cancel ID]"
_ID_LENGTH = 32
_LINES = 500


async def build(args: argparse.Namespace, screen: Screen) -> int:
    """Has a version built."""
    name, version = args.reference
    async with connected(args) as client:
        spec, files = _spec(args)
        for role, path in [*files, *args.file]:
            if spec is None:
                raise UsageError("--file goes with --step or -f", "penstock build NAME --step STEP --file ROLE=PATH")
            spec.files[role] = (await client.upload(path)).digest
        made = await client.build(name, version, spec=spec)
        screen.note(f"build {made.id} of {made.name}@{made.source_version}")
        if args.wait:
            made = await client.ended_build(
                made, wait=DEFAULT_WAIT if args.timeout is None else args.timeout, on_line=_noting(screen)
            )
    if screen.as_json:
        screen.data({"build": messages.plain(made)})
    else:
        _show(screen, made)
        if not args.wait:
            screen.line(f"next: penstock builds logs {made.id[:12]} --follow")
    return 1 if args.wait and not _good(made) else 0


async def builds(args: argparse.Namespace, screen: Screen) -> int:
    """Lists builds, shows one or its log, or cancels it."""
    async with connected(args) as client:
        match args.what:
            case [] | [_]:
                return await _list(client, screen, args.what[0] if args.what else "")
            case ["show", given]:
                made = await client.get_build(await _id(client, given))
            case ["cancel", given]:
                made = await client.cancel_build(await _id(client, given))
            case ["logs", given]:
                return await _logs(client, screen, await _id(client, given), follow=args.follow)
            case _:
                raise UsageError("not a command of builds", _USAGE)
    if screen.as_json:
        screen.data({"build": messages.plain(made)})
    else:
        _show(screen, made)
    return 0


async def audit(args: argparse.Namespace, screen: Screen) -> int:
    """Lists overrides."""
    async with connected(args) as client:
        found = await client.overrides(args.name or "")
    if screen.as_json:
        screen.data({"overrides": [messages.plain(one) for one in found]})
        return 0
    rows = [
        (f"{one.name}@{one.version}", messages.when(one.time), one.who, one.reason, "; ".join(one.failed_checks))
        for one in found
    ]
    columns = ("VERSION", "WHEN (UTC)", "BY", "WHY", "FAILED CHECKS")
    screen.table(columns, rows, empty="nobody has overridden a gate")
    return 0


async def _list(client: AsyncClient, screen: Screen, name: str) -> int:
    found = [one async for one in client.builds(name)]
    if screen.as_json:
        screen.data({"builds": [messages.plain(one) for one in found]})
        return 0
    rows = [
        (
            one.id[:12],
            f"{one.name}@{one.source_version}",
            _state(one.state),
            ", ".join(step.step for step in one.steps),
            _GATES.get(one.gate, ""),
            f"{one.name}@{one.result_version}" if one.result_version else "",
            messages.when(one.create_time),
        )
        for one in found
    ]
    screen.table(("BUILD", "OF", "STATE", "STEPS", "GATE", "MADE", "ASKED (UTC)"), rows, empty="no builds")
    return 0


async def _logs(client: AsyncClient, screen: Screen, build_id: str, *, follow: bool) -> int:
    ended = follow or (await client.get_build(build_id)).state in ENDED
    async with aclosing(client.watch_build(build_id)) as answers:
        async for answer in answers:
            for line in answer.lines:
                _log_line(screen, line)
            # Of a build that goes on, what has been said comes in full answers; a shorter one is the last for now.
            if not ended and len(answer.lines) < _LINES:
                break
    return 0


async def _id(client: AsyncClient, given: str) -> str:
    """The whole id of a beginning; raises NothingHere, InvalidArgument where it is not clear."""
    if len(given) == _ID_LENGTH:
        return given
    found = [one.id async for one in client.builds() if one.id.startswith(given)]
    if not found:
        raise NothingHere(f"there is no build {given!r}; `penstock builds` lists them")
    if len(found) > 1:
        raise InvalidArgument(f"{given!r} begins {len(found)} builds; give more of the id")
    return found[0]


def _show(screen: Screen, made: pb.Build) -> None:
    rows = [
        (
            step.id,
            _state(step.state),
            "found" if step.cached else _seconds(step),
            ", ".join(f"{role} {size(one.size_bytes)}" for role, one in sorted(step.outputs.items())),
            step.reason,
        )
        for step in made.steps
    ]
    screen.table(("STEP", "STATE", "TOOK", "MADE", ""), rows)
    screen.line(f"build {made.id} of {made.name}@{made.source_version}: {_STATES.get(made.state, made.state)}")
    if made.reason:
        screen.line(made.reason)
    if made.gate:
        checks = f": {'; '.join(made.failed_checks)}" if made.failed_checks else ""
        screen.line(f"gate {_GATES[made.gate]}{checks}")
    for engine in made.engines:
        screen.line(f"engine for {engine.architecture}, {engine.precision}, {engine.builder} {engine.builder_version}")
    if made.result_version:
        screen.line(f"next: penstock deploy {made.name}@{made.result_version}")


def _state(state: int) -> tuple[str, str]:
    word = _STATES.get(state, str(state))
    return word, _STYLES.get(word, "")


def _seconds(step: pb.StepStatus) -> str:
    if not step.end_time.seconds:
        return f"{step.progress:.0%}" if step.progress else ""
    return f"{(step.end_time.ToNanoseconds() - step.start_time.ToNanoseconds()) / 1e9:.1f} s"


def _noting(screen: Screen) -> OnLine:
    return lambda line: screen.note(f"{line.step_id + ': ' if line.step_id else ''}{line.text}")


def _log_line(screen: Screen, line: pb.BuildLogLine) -> None:
    if screen.as_json:
        screen.data(messages.plain(line), one_line=True)
    else:
        screen.line(f"{messages.when(line.time)[11:]} {line.step_id or '-'}: {line.text}")


def _good(made: pb.Build) -> bool:
    return made.state == pb.BUILD_STATE_SUCCEEDED and made.gate != pb.GATE_VERDICT_FAILED


def _spec(args: argparse.Namespace) -> tuple[manifest_pb2.BuildSpec | None, list[tuple[str, str]]]:
    """What the arguments ask for, None for what the manifest says; and files to upload, by role."""
    if args.spec:
        return _read(Path(args.spec), args.target)
    if not args.step:
        if args.target:
            raise UsageError("--target goes with --step or -f", "penstock build NAME --step compile --target ...")
        return None, []
    spec = manifest_pb2.BuildSpec(targets=[json.dumps(_parameters(shlex.split(one))) for one in args.target])
    for one in args.step:
        step, *words = shlex.split(one) or [""]
        spec.steps.add(step=step, parameters=json.dumps(_parameters(words)))
    return spec, []


def _read(path: Path, targets: Sequence[str]) -> tuple[manifest_pb2.BuildSpec, list[tuple[str, str]]]:
    """A build.yaml: `steps` as under `build` of a model.yaml, `targets`, and `files` with paths beside it."""
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InvalidArgument(f"{path}: is neither YAML nor JSON") from None
    if not isinstance(content, dict) or set(content) - {"steps", "targets", "files"}:
        raise InvalidArgument(f"{path}: needs a mapping of steps, targets and files")
    spec = manifest_pb2.BuildSpec()
    try:
        for one in content.get("steps") or ():
            parameters = json.dumps(one.get("parameters") or {})
            inputs = {str(role): str(text) for role, text in (one.get("inputs") or {}).items()}
            spec.steps.add(id=one.get("id", ""), step=one["step"], parameters=parameters, inputs=inputs)
        spec.targets.extend(json.dumps(target) for target in content.get("targets") or ())
        files = [(str(role), str(path.parent / name)) for role, name in (content.get("files") or {}).items()]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InvalidArgument(f"{path}: a step is a mapping with `step`, and may have id, parameters, inputs") from None
    spec.targets.extend(json.dumps(_parameters(shlex.split(one))) for one in targets)
    return spec, files


def _parameters(words: Sequence[str]) -> dict[str, Any]:
    """`rows=8 batch.max=32 keep=["a"]` as a document: values are JSON where they can be, else text."""
    made: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise UsageError(f"{word!r} is not KEY=VALUE", "penstock build NAME --step 'STEP KEY=VALUE ...'")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        place, *path = key.split(".")
        inside = made
        while path:
            inside = inside.setdefault(place, {})
            if not isinstance(inside, dict):
                raise UsageError(f"{word!r}: {place} is given twice", "penstock build NAME --step 'STEP KEY=VALUE ...'")
            place, *path = path
        inside[place] = value
    return made
