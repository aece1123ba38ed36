"""Requests of the management API are read strictly; messages are written plainly."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2, models_pb2
from services.gateway.rest.fields import FLAG, INTEGER, TEXT, TEXTS, VERSION, Field, integer, read_body, read_query
from services.gateway.rest.messages import to_plain
from services.gateway.rest.uploads import Part, find_part

FIELDS = (
    Field("text", TEXT, "t", required=True),
    Field("count", INTEGER, "c", maximum=10),
    Field("flag", FLAG, "f"),
    Field("map", TEXTS, "m"),
    Field("version", VERSION, "v"),
)


def test_a_body_with_everything() -> None:
    document = {"text": "", "count": 0, "flag": False, "map": {"a": "b"}, "version": 3}
    assert read_body(document, FIELDS) == {**document, "version": "3"}
    assert read_body({"text": "t", "version": "champion", "count": None}, FIELDS) == {
        "text": "t",
        "version": "champion",
    }


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "body"),
        ({}, "text"),
        ({"text": None}, "text"),
        ({"text": 1}, "text"),
        ({"text": "t", "other": 1}, "other"),
        ({"text": "t", "count": True}, "count"),
        ({"text": "t", "count": -1}, "count"),
        ({"text": "t", "count": 11}, "count"),
        ({"text": "t", "count": 1.0}, "count"),
        ({"text": "t", "flag": 1}, "flag"),
        ({"text": "t", "map": {"a": 1}}, "map"),
        ({"text": "t", "map": []}, "map"),
        ({"text": "t", "version": 0}, "version"),
        ({"text": "t", "version": True}, "version"),
        ({"text": "t", "version": 2**63}, "version"),
    ],
)
def test_a_wrong_body_names_its_field(document: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_body(document, FIELDS)
    assert caught.value.field == field


def test_a_query() -> None:
    assert read_query({"text": "1", "count": "5", "flag": "true"}, FIELDS) == {"text": "1", "count": 5, "flag": True}
    for wrong in ({"count": "x"}, {"count": "-1"}, {"count": "11"}, {"flag": "1"}, {"nope": ""}):
        with pytest.raises(InvalidArgument):
            read_query({"text": "t", **wrong}, FIELDS)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "one", "9" * 19, "１"])
def test_a_version_in_a_path_is_a_positive_integer(text: str) -> None:
    with pytest.raises(InvalidArgument):
        integer(text, "version")


def test_messages_are_written_whole_and_wide_numbers_exactly() -> None:
    message = models_pb2.Model(name="m", latest_version=2**53 - 1, aliases={"a": 2**53}, tags={"k": "v"})
    message.create_time.CopyFrom(Timestamp(seconds=1))
    plain = to_plain(message)
    assert plain["latest_version"] == 2**53 - 1
    assert plain["aliases"] == {"a": str(2**53)}
    assert plain["create_time"] == "1970-01-01T00:00:01Z"
    assert "update_time" not in plain
    assert plain["version_count"] == 0
    assert plain["description"] == ""


def test_the_inference_protocol_writes_every_number_as_a_number() -> None:
    message = oip.ModelStatistics(last_inference=2**63)
    assert to_plain(message, exact=False)["last_inference"] == 2**63


def test_enums_are_written_by_name_and_unknown_ones_by_number() -> None:
    replica = cluster_pb2.ReplicaStatus(state=cluster_pb2.REPLICA_STATE_READY)
    assert to_plain(replica)["state"] == "REPLICA_STATE_READY"
    unknown = cluster_pb2.ReplicaStatus.FromString(b"\x10\x63")
    assert to_plain(unknown)["state"] == "99"


@pytest.mark.parametrize(
    ("content_range", "length", "query", "part"),
    [
        (None, "100", {}, Part(0, 100)),
        (None, "100", {"offset": 50}, Part(50, 150)),
        (None, None, {"offset": 50, "size": 150}, Part(50, 150)),
        (None, "100", {"offset": 50, "size": 150}, Part(50, 150)),
        ("bytes 50-149/150", "100", {}, Part(50, 150)),
        ("bytes 0-0/1", None, {}, Part(0, 1)),
        (None, "0", {}, Part(0, 0)),
    ],
)
def test_parts_of_an_upload(content_range: str | None, length: str | None, query: dict[str, int], part: Part) -> None:
    assert find_part(content_range, length, query) == part


@pytest.mark.parametrize(
    ("content_range", "length", "query"),
    [
        (None, None, {}),
        (None, "100", {"offset": 50, "size": 149}),
        (None, None, {"offset": 50, "size": 49}),
        ("bytes 0-98/100", None, {}),
        ("bytes 50-149/*", "100", {}),
        ("bytes 50-149/150", "99", {}),
        ("bytes 150-149/150", "0", {}),
        ("items 0-1/2", None, {}),
    ],
)
def test_parts_that_contradict_themselves(content_range: str | None, length: str | None, query: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        find_part(content_range, length, query)
