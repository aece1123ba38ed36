"""Plain values are read into messages strictly."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.errors import InvalidArgument
from penstock.reading import read
from penstock.v1 import manifest_pb2
from penstock.v1 import models_pb2 as pb


def test_everything_that_a_message_may_hold() -> None:
    window: Any = {"days": ["mon"], "begin": "08:00", "end": "18:00", "replicas": 2}
    scaling = {"min_replicas": 0, "max_replicas": 4, "outstanding": 2, "queue_time": "50ms", "schedule": [window]}
    placement = {"selector": {"zone": "a"}, "tolerations": ["spot"], "pinned": True, "priority": -3, "spread": None}
    made = read({"name": "digits", "scaling": scaling, "placement": placement}, pb.DeployRequest, "")
    assert made.scaling.schedule[0] == pb.ScaleWindow(**window)
    assert (made.scaling.outstanding, made.scaling.queue_time.nanos) == (2.0, 50_000_000)
    assert made.placement == manifest_pb2.Placement(
        selector={"zone": "a"}, tolerations=["spot"], pinned=True, priority=-3
    )
    assert read({"placement": {}}, pb.DeployRequest, "").HasField("placement")
    assert not read({"placement": None}, pb.DeployRequest, "").HasField("placement")


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        ([], "at", "mapping of fields"),
        ({"min": 1}, "at.min", "known are min_replicas"),
        ({1: 1}, "at.1", "not known"),
        ({"min_replicas": "1"}, "at.min_replicas", "an integer, not '1'"),
        ({"min_replicas": True}, "at.min_replicas", "an integer"),
        ({"min_replicas": 1.0}, "at.min_replicas", "an integer"),
        ({"min_replicas": 2**31}, "at.min_replicas", "does not fit"),
        ({"outstanding": True}, "at.outstanding", "a number"),
        ({"outstanding": 2**60}, "at.outstanding", "a number"),
        ({"queue_time": 5}, "at.queue_time", "such as 50ms"),
        ({"queue_time": "5"}, "at.queue_time", "such as 50ms"),
        ({"schedule": {}}, "at.schedule", "a list"),
        ({"schedule": [{}, {"begin": 1080}]}, "at.schedule[1].begin", "put it in quotes, not 1080"),
        ({"schedule": [{"days": ["mon", 2]}]}, "at.schedule[0].days[1]", "text"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(value: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read(value, pb.Scaling, "at")
    assert raised.value.field == field
    assert raised.value.message.startswith(f"{field}: ")
    assert words in raised.value.message


def test_maps_hold_texts() -> None:
    for selector, field in (([], "p.selector"), ({"zone": 1}, "p.selector.zone"), ({1: "a"}, "p.selector")):
        with pytest.raises(InvalidArgument) as raised:
            read({"selector": selector}, manifest_pb2.Placement, "p")
        assert raised.value.field == field
