"""Sizes of batches that were executed, for the shape profiles of a build (pure).

`"batch": {"seen": "observed"}` of a step `compile` stands for what the workers have counted. It is replaced before the
build is asked for, so that a build says itself what it was made for, and the same traffic finds the same plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.v1 import manifest_pb2

OBSERVED: Final = "observed"
STEP: Final = "compile"
_WHOLE: Final = 10_000
"""Batches that a histogram speaks of, however many there were."""


def asks(spec: manifest_pb2.BuildSpec) -> bool:
    """Whether a step or a target of the spec leaves it to what was observed."""
    steps = [step.parameters for step in spec.steps if step.step == STEP]
    return any(_asks(_read(text)) for text in [*steps, *spec.targets])


def filled(spec: manifest_pb2.BuildSpec, seen: dict[str, int]) -> manifest_pb2.BuildSpec:
    """The spec with this histogram wherever it asks for one; the rest as it is."""
    made = manifest_pb2.BuildSpec()
    made.CopyFrom(spec)
    for step in made.steps:
        if step.step == STEP:
            step.parameters = _filled(step.parameters, seen)
    made.targets[:] = [_filled(text, seen) for text in made.targets]
    return made


def histogram(name: str, statistics: Iterable[oip.ModelStatistics]) -> dict[str, int]:
    """Size of a batch → how often, of all versions together, in ten thousandths and two digits: what changes is the
    traffic's shape, not that it goes on. Raises InvalidArgument where nothing was executed yet."""
    counts: dict[int, int] = {}
    for each in statistics:
        for batch in each.batch_stats:
            counts[batch.batch_size] = counts.get(batch.batch_size, 0) + batch.compute_infer.count
    total = sum(counts.values())
    if not total:
        raise nothing_observed(name)
    return {str(size): _two_digits(count * _WHOLE / total) for size, count in sorted(counts.items()) if count}


def nothing_observed(name: str) -> InvalidArgument:
    """What a build ends with before it begins when there is no traffic to go by."""
    return InvalidArgument(
        f"batch.seen: no traffic of {name!r} was observed, since no replica that is ready has been called; deploy it "
        'and call it first, say how often each size comes, such as {"1": 90, "8": 10}, or leave it out',
        field="batch.seen",
    )


def _two_digits(share: float) -> int:
    return max(1, int(float(f"{share:.2g}")))


def _asks(parameters: Any) -> bool:
    batch = parameters.get("batch") if isinstance(parameters, dict) else None
    return isinstance(batch, dict) and batch.get("seen") == OBSERVED


def _filled(text: str, seen: dict[str, int]) -> str:
    parameters = _read(text)
    if not _asks(parameters):
        return text
    parameters["batch"]["seen"] = seen
    return json.dumps(parameters)


def _read(text: str) -> Any:
    """Parameters as they were given; None for what is no JSON, of which the registry says so."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return None
