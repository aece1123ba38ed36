"""What somebody who deploys may ask for besides a version: replicas or scaling, a place, a tenant (pure).

Every refusal names its field and says what would be right: `scaling.schedule[0].days[1]: 'monday' is no day; use one
of mon, tue, ...`.
"""

from __future__ import annotations

import math
import re
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError

from penstock import names
from penstock.errors import InvalidArgument
from penstock.v1 import manifest_pb2
from penstock.v1 import models_pb2 as pb

from . import fields
from .deployments import Wanted
from .manifest import problem

MAX_REPLICAS: Final = 1000
MAX_TARGET: Final = 1e9
MAX_WINDOWS: Final = 64
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
QUEUE_SECONDS: Final = (0.0, 3_600.0)
IDLE_SECONDS: Final = (1.0, 7 * 86_400.0)
RISE_SECONDS: Final = (0.0, 3_600.0)
FALL_SECONDS: Final = (0.0, 86_400.0)

_TIME = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")


def wanted(request: pb.DeployRequest) -> Wanted | None:
    """What the request asks for, checked; None to keep what is wanted already. Raises InvalidArgument."""
    if request.keep_options:
        _check_unset(request)
        return None
    if not 0 <= request.replicas <= MAX_REPLICAS:
        raise _wrong("replicas", f"{request.replicas} is not 1 to {MAX_REPLICAS}, or 0 for 1")
    tenant = names.model(request.tenant, "tenant") if request.tenant else ""
    placement = None
    if request.HasField("placement"):
        _check_placement(request.placement)
        placement = request.placement.SerializeToString(deterministic=True)
    if not request.HasField("scaling"):
        return Wanted(request.replicas or 1, placement=placement, tenant=tenant)
    if request.replicas:
        raise _wrong("replicas", "cannot be given beside `scaling`; its min_replicas and max_replicas say how many")
    _check_scaling(request.scaling)
    scaling = request.scaling.SerializeToString(deterministic=True)
    return Wanted(request.scaling.min_replicas, scaling=scaling, placement=placement, tenant=tenant)


def _check_unset(request: pb.DeployRequest) -> None:
    said = [name for name in ("scaling", "placement") if request.HasField(name)]
    said += [name for name in ("replicas", "tenant") if getattr(request, name)]
    if said:
        raise _wrong("keep_options", f"cannot be set beside {said[0]}; leave one of them out")


def _check_scaling(scaling: pb.Scaling) -> None:
    least, most = scaling.min_replicas, scaling.max_replicas
    if not 0 <= least <= MAX_REPLICAS:
        raise _wrong("scaling.min_replicas", f"{least} is not 0 to {MAX_REPLICAS}")
    if not 1 <= most <= MAX_REPLICAS:
        raise _wrong("scaling.max_replicas", f"{most} is not 1 to {MAX_REPLICAS}")
    if least > most:
        raise _wrong("scaling.min_replicas", f"{least} is more than max_replicas, {most}; it is at most as much")
    for name in ("outstanding", "rate"):
        target = getattr(scaling, name)
        if not 0 <= target <= MAX_TARGET:
            raise _wrong(f"scaling.{name}", f"{target:g} is not above 0 and at most {MAX_TARGET:g}, or 0 for none")
    if not 0 <= scaling.utilisation <= 1:
        raise _wrong("scaling.utilisation", f"{scaling.utilisation:g} is not above 0 and at most 1, or 0 for none")
    for field, value in scaling.ListFields():
        if field.name in _DURATIONS:
            _check_duration(value, f"scaling.{field.name}", *_DURATIONS[field.name])
    if len(scaling.schedule) > MAX_WINDOWS:
        raise _wrong("scaling.schedule", f"has {len(scaling.schedule)} windows; it may have {MAX_WINDOWS}")
    for number, window in enumerate(scaling.schedule):
        _check_window(window, f"scaling.schedule[{number}]", most)
    if most > max(least, 1) and not _is_driven(scaling):
        raise _wrong(
            "scaling",
            "nothing says when there are more than the least; give outstanding, rate, queue_time, utilisation or a "
            "schedule",
        )


_DURATIONS: Final = {
    "queue_time": QUEUE_SECONDS,
    "idle_time": IDLE_SECONDS,
    "rise_time": RISE_SECONDS,
    "fall_time": FALL_SECONDS,
}


def _is_driven(scaling: pb.Scaling) -> bool:
    """Whether some policy ever asks for replicas."""
    queue = scaling.queue_time.seconds or scaling.queue_time.nanos
    return bool(scaling.outstanding or scaling.rate or queue or scaling.utilisation or scaling.schedule)


def _check_duration(duration: Duration, field: str, low: float, high: float) -> None:
    # Bounds of protobuf itself: nanoseconds below a second, with the sign of the seconds.
    seconds = duration.seconds + duration.nanos / 1e9
    if not (0 <= duration.nanos < 10**9 and math.isfinite(seconds) and low <= seconds <= high):
        raise _wrong(field, f"{seconds:g} s is not {low:g} s to {high:g} s")


def _check_window(window: pb.ScaleWindow, field: str, most: int) -> None:
    for number, day in enumerate(window.days):
        if day not in DAYS:
            raise _wrong(f"{field}.days[{number}]", f"{day[:20]!a} is no day; use one of {', '.join(DAYS)}")
    if len(set(window.days)) < len(window.days):
        raise _wrong(f"{field}.days", "names a day twice; name each once, or none for every day")
    for name in ("begin", "end"):
        text = getattr(window, name)
        if not _TIME.fullmatch(text):
            raise _wrong(f"{field}.{name}", f"{text[:20]!a} is no time; use HH:MM from 00:00 to 23:59, in UTC")
    if not 1 <= window.replicas <= most:
        raise _wrong(f"{field}.replicas", f"{window.replicas} is not 1 to max_replicas, {most}")


def _check_placement(placement: manifest_pb2.Placement) -> None:
    """The same limits as in a manifest."""
    try:
        fields.Placement.model_validate(MessageToDict(placement, preserving_proto_field_name=True))
    except ValidationError as error:
        place, text = problem(error.errors(include_url=False)[0])
        raise _wrong(f"placement.{place}", text) from None


def _wrong(field: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {text}", field=field)
