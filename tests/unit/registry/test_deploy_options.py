"""What may be asked for when a version is deployed, and what is said of what may not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from penstock.errors import InvalidArgument
from penstock.v1 import manifest_pb2
from penstock.v1 import models_pb2 as pb
from services.registry.deploy_options import wanted
from services.registry.deployments import Wanted


def asked(**fields: Any) -> pb.DeployRequest:
    return pb.DeployRequest(name="digits", **fields)


def scaled(**fields: Any) -> pb.DeployRequest:
    return asked(scaling=pb.Scaling(**{"min_replicas": 1, "max_replicas": 4, "outstanding": 2.0, **fields}))


def window(**fields: Any) -> pb.ScaleWindow:
    return pb.ScaleWindow(**{"begin": "08:00", "end": "18:00", "replicas": 2, **fields})


def test_without_a_word_it_is_one_replica() -> None:
    assert wanted(asked()) == Wanted(1)
    assert wanted(asked(replicas=3, tenant="acme")) == Wanted(3, tenant="acme")


def test_scaling_wants_at_least_the_least() -> None:
    request = scaled(min_replicas=0, queue_time=timedelta(milliseconds=50), schedule=[window(days=["sat", "sun"])])
    found = wanted(request)
    assert found is not None and found.scaling is not None
    assert found.replicas == 0
    assert pb.Scaling.FromString(found.scaling) == request.scaling


def test_a_place_that_is_said_counts_even_when_it_is_empty() -> None:
    assert wanted(asked(placement=manifest_pb2.Placement())) == Wanted(1, placement=b"")


def test_one_replica_on_demand_needs_no_policy() -> None:
    assert wanted(asked(scaling=pb.Scaling(max_replicas=1))) is not None
    assert wanted(asked(scaling=pb.Scaling(min_replicas=3, max_replicas=3))) is not None


def test_what_is_wanted_already_can_be_kept() -> None:
    assert wanted(asked(keep_options=True)) is None


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (asked(replicas=-1), "replicas", "is not 1 to 1000"),
        (asked(replicas=1001), "replicas", "is not 1 to 1000"),
        (asked(tenant="A b"), "tenant", "cannot name"),
        (asked(keep_options=True, replicas=2), "keep_options", "beside replicas"),
        (asked(keep_options=True, scaling=pb.Scaling()), "keep_options", "beside scaling"),
        (asked(replicas=2, scaling=pb.Scaling(max_replicas=2)), "replicas", "beside `scaling`"),
        (scaled(min_replicas=-1), "scaling.min_replicas", "is not 0 to 1000"),
        (scaled(max_replicas=0), "scaling.max_replicas", "is not 1 to 1000"),
        (scaled(min_replicas=5), "scaling.min_replicas", "more than max_replicas, 4"),
        (scaled(outstanding=-1.0), "scaling.outstanding", "above 0"),
        (scaled(rate=float("nan")), "scaling.rate", "above 0"),
        (scaled(rate=float("inf")), "scaling.rate", "above 0"),
        (scaled(utilisation=1.5), "scaling.utilisation", "at most 1"),
        (scaled(utilisation=float("nan")), "scaling.utilisation", "at most 1"),
        (scaled(outstanding=0.0), "scaling", "outstanding, rate, queue_time, utilisation or a schedule"),
        (scaled(queue_time=timedelta(hours=2)), "scaling.queue_time", "0 s to 3600 s"),
        (scaled(queue_time=timedelta(seconds=-1)), "scaling.queue_time", "0 s to 3600 s"),
        (scaled(idle_time=timedelta(milliseconds=1)), "scaling.idle_time", "1 s to 604800 s"),
        (scaled(rise_time=timedelta(days=1)), "scaling.rise_time", "0 s to 3600 s"),
        (scaled(fall_time=timedelta(days=2)), "scaling.fall_time", "0 s to 86400 s"),
        (scaled(schedule=[window()] * 65), "scaling.schedule", "may have 64"),
        (scaled(schedule=[window(days=["mon", "monday"])]), "scaling.schedule[0].days[1]", "one of mon, tue"),
        (scaled(schedule=[window(days=["mon", "mon"])]), "scaling.schedule[0].days", "twice"),
        (scaled(schedule=[window(), window(begin="8:00")]), "scaling.schedule[1].begin", "HH:MM"),
        (scaled(schedule=[window(end="24:00")]), "scaling.schedule[0].end", "00:00 to 23:59"),
        (scaled(schedule=[window(replicas=0)]), "scaling.schedule[0].replicas", "1 to max_replicas, 4"),
        (scaled(schedule=[window(replicas=5)]), "scaling.schedule[0].replicas", "1 to max_replicas, 4"),
        (asked(placement=manifest_pb2.Placement(priority=101)), "placement.priority", "at most 100"),
        (asked(placement=manifest_pb2.Placement(spread="always")), "placement.spread", "one of preferred, required"),
        (asked(placement=manifest_pb2.Placement(affinity=["A"])), "placement.affinity[0]", "cannot name a model"),
        (asked(placement=manifest_pb2.Placement(selector={"a b": "c"})), "placement.selector", "label or taint"),
    ],
)
def test_what_is_wrong_is_told_with_its_field(request_: pb.DeployRequest, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        wanted(request_)
    assert raised.value.field.startswith(field), raised.value.message
    assert words in raised.value.message
    assert raised.value.message.startswith(raised.value.field)
