"""Which plan a replica needs, and which will do (pure).

A plan is found again by everything that it depends on: the digest of the ONNX file, from which its precision follows;
builder, version and architecture, which the engine names; and the shapes, which follow from the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from penstock.compiling.builders import RTX_ARCHITECTURES
from penstock.plans import BUILDERS, PlanHeader
from penstock.v1 import manifest_pb2 as pb

from ..engines.trt.matching import Target

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, best and largest."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a plan must be compiled from and in which shapes.

    source: digest of the ONNX file. best, largest: rows of a batch; 0 for a model without batches. inputs: shapes of
    the inputs that the manifest says in full. sizes: dimension → smallest, best, largest. workspace: bytes of the
    device that a kernel may use, 0 for the builder's choice.
    """

    source: str
    best: int = 0
    largest: int = 0
    inputs: Mapping[str, Shapes] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    workspace: int = 0

    @property
    def shapes(self) -> str:
        """Hex digest of all but the source."""
        document = asdict(self)
        del document["source"]
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def met_by(self, plan: PlanHeader) -> bool:
        """Whether somebody else's plan was made from this source and takes the largest batch at once."""
        reach = max((shapes[2][0] for one in plan.profiles for shapes in one.values() if shapes[2]), default=0)
        return plan.source == self.source and (not plan.profiles or reach >= self.largest)


def wanted(manifest: pb.Manifest, source: str) -> Wanted:
    """What a version needs whose ONNX file has that digest."""
    most = manifest.batching.max_batch_size
    preferred = [size for size in manifest.batching.preferred_batch_size if 0 < size <= most]
    best = max(preferred, default=most)
    inputs = {}
    for spec in manifest.inputs:
        if all(size > 0 for size in spec.shape):
            each = [(size, *spec.shape) if most else tuple(spec.shape) for size in (min(1, most), best, most)]
            inputs[spec.name] = (each[0], each[1], each[2])
    workspace = manifest.resources.devices.memory_bytes
    return Wanted(source, best, most, inputs, _sizes(manifest.build), workspace)


def _sizes(build: pb.BuildSpec) -> dict[str, tuple[int, ...]]:
    """The sizes of the manifest's own step `compile`; what is not as it should be, the registry's build says."""
    found: dict[str, Any] = {}
    for step in build.steps:
        if step.step == "compile":
            try:
                found |= json.loads(step.parameters or "{}")["sizes"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
    return {
        name: tuple(three)
        for name, three in found.items()
        if isinstance(three, list) and len(three) == 3 and all(type(size) is int for size in three)
    }


def capability(target: Target) -> str:
    """What the builder is told to compile for: TensorRT compiles for the device that it sees and is told nothing;
    TensorRT-RTX for any that it knows by name, and otherwise for the one that is there."""
    if target.builder != BUILDERS["tensorrt_rtx_bindings"]:
        return ""
    number = target.architecture.removeprefix("sm")
    return f"SM{number}" if number in RTX_ARCHITECTURES else "CURRENT"
