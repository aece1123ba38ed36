"""What a job's result is published as (pure): the manifest of the version that it started from, with a new model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError

from penstock.errors import InvalidManifest
from penstock.sources import CONVERTING
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2

from ..document import shown
from ..fields import Tensor
from ..sources import read_by_conversion
from .dag import MODEL

_KEY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_MAX_ENTRIES: Final = 64
_TENSORS: Final = TypeAdapter(Annotated[list[Tensor], Field(min_length=1, max_length=64)])
_ENGINE_FIELDS: Final = ("source_digest", "builder", "builder_version", "architecture", "precision", "profile")


def manifest(
    source: manifest_pb2.Manifest, version: int, build_id: str, steps: Sequence[pb.StepStatus], *, estimated: bool
) -> manifest_pb2.Manifest:
    """The manifest of the result: always ONNX, which is what every step but `compile` writes.

    version: number of the source; estimated: the source's memory was estimated from its files, so that of the result is
    too. The result builds nothing further, and says where it comes from. Inputs and outputs that the source does not
    declare are those that the conversion reports; raises InvalidManifest where none does, or where they cannot be
    batched as the source says.
    """
    made = manifest_pb2.Manifest()
    made.CopyFrom(source)
    made.ClearField("build")
    made.format = "onnx"
    for role in list(made.files):
        if read_by_conversion(source.format, role):
            del made.files[role]
    made.files["model"] = "model.onnx"
    if source.format in CONVERTING:
        _complete(made, [report(step) for step in steps])
    if estimated:
        made.resources.memory_bytes = 0
    made.lineage.parents[:] = [f"{source.name}@{version}"]
    made.lineage.notes["build"] = build_id
    made.lineage.notes["build_steps"] = ", ".join(step.step for step in steps)
    for step in steps:
        for name, number in _numbers(report(step)):
            key = f"{step.id}.{name}"
            if len(made.lineage.metrics) < _MAX_ENTRIES and _KEY.fullmatch(key):
                made.lineage.metrics[key] = number
    return made


def digests(format: str, source: Mapping[str, str], written: Mapping[str, str]) -> dict[str, str]:
    """Digest by role of the result's files: the model that the job wrote and those of the source, with what the job
    wrote in their place. format: the source's; what only its conversion reads is left out."""
    kept = {role: written.get(role, digest) for role, digest in source.items() if not read_by_conversion(format, role)}
    return kept | {MODEL: written[MODEL]}


def engine(step: pb.StepStatus, build: pb.Build) -> pb.Engine | None:
    """The engine that a step compiled: its report has under `engine` what the plan depends on, its files a `plan`."""
    key = report(step).get("engine")
    if "plan" not in step.outputs or not isinstance(key, dict):
        return None
    made = pb.Engine(build_id=build.id, name=build.name, version=build.source_version)
    for name in _ENGINE_FIELDS:
        value = key.get(name, "")
        setattr(made, name, value if isinstance(value, str) else json.dumps(value, sort_keys=True))
    made.artifact.CopyFrom(step.outputs["plan"])
    for role, artifact in step.outputs.items():
        if role != "plan":
            made.files[role].CopyFrom(artifact)
    return made


def report(step: pb.StepStatus) -> dict[str, Any]:
    """What a step measured."""
    found = json.loads(step.report) if step.report else {}
    return found if isinstance(found, dict) else {}


def _complete(made: manifest_pb2.Manifest, reports: Sequence[Mapping[str, Any]]) -> None:
    """Declares the tensors that the first report with an `interface` tells of, where the source declared none."""
    told: Mapping[str, Any] = next(
        (found["interface"] for found in reports if isinstance(found.get("interface"), dict)), {}
    )
    for kind, declared in (("inputs", made.inputs), ("outputs", made.outputs)):
        if declared:
            continue
        if kind not in told:
            raise InvalidManifest(f"{kind}: are not declared, and no step reported them; declare them", field=kind)
        for tensor in _tensors(kind, told[kind]):
            shape = tensor.shape
            if made.batching.max_batch_size:
                if shape[:1] != [-1]:
                    raise InvalidManifest(
                        f"{kind}: {shown(tensor.name)} has a batch of one size only; leave batching.max_batch_size out",
                        field="batching.max_batch_size",
                    )
                shape = shape[1:]
            declared.add(name=tensor.name, datatype=tensor.datatype, shape=shape)


def _tensors(kind: str, told: Any) -> list[Tensor]:
    """What a step reported of a file that it does not vouch for, held to the limits of a manifest."""
    try:
        return _TENSORS.validate_python(told)
    except ValidationError:
        text = f"{kind}: those of the converted model have names or shapes that a manifest cannot hold; rename them"
        raise InvalidManifest(text, field=kind) from None


def _numbers(found: Mapping[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, float]]:
    """Every number of a report with its path, such as `accuracy.after`."""
    for name, value in sorted(found.items()):
        if isinstance(value, Mapping) and depth:
            yield from _numbers(value, f"{prefix}{name}.", depth - 1)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)
