"""What a request is told for every state that a deployment and its replicas can be in."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidArgument, NotFound, Unavailable
from penstock.internal.v1.records_pb2 import ReplicaRecord
from services.gateway.route_table import Replica, RouteTable, view_of
from tests.unit.gateway.records import (
    ASSIGNED,
    DRAINING,
    FAILED,
    LOADING,
    PULLING,
    READY,
    deployment,
    replica,
)


def table(
    *records: ReplicaRecord,
    versions: tuple[int, ...] = (1,),
    default: int = 0,
    aliases: dict[str, int] | None = None,
) -> RouteTable:
    view = view_of(deployment("digits", *versions, default=default, aliases=aliases), records)
    return RouteTable().with_models({"digits": view})


def test_ready_replicas_by_worker() -> None:
    route = table(replica("w2"), replica("w1"), replica("w3", LOADING)).resolve("digits", "")
    assert route.version == 1
    assert route.replicas == (Replica("w1", "w1:1"), Replica("w2", "w2:1"))


def test_no_version_means_the_default_one() -> None:
    routes = table(replica("w1", version=1), replica("w1", version=2), versions=(1, 2), default=1)
    assert routes.resolve("digits", "").version == 1


def test_no_version_falls_back_to_the_highest_ready_one() -> None:
    routes = table(
        replica("w1", version=1),
        replica("w1", version=2),
        replica("w1", LOADING, version=3),
        versions=(1, 2, 3),
        default=3,
    )
    assert routes.resolve("digits", "").version == 2


@pytest.mark.parametrize("text", ["2", "002", "best"])
def test_version_by_number_and_alias(text: str) -> None:
    routes = table(replica("w1"), replica("w2", version=2), versions=(1, 2), default=1, aliases={"best": 2})
    route = routes.resolve("digits", text)
    assert (route.version, route.replicas) == (2, (Replica("w2", "w2:1"),))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "v 1", "a/b", "..", "9" * 30, "é", " "])
def test_a_version_that_is_neither(text: str) -> None:
    with pytest.raises(InvalidArgument, match="neither a positive integer nor an alias"):
        table(replica("w1")).resolve("digits", text)


def test_no_model_name() -> None:
    with pytest.raises(InvalidArgument, match="names no model"):
        table(replica("w1")).resolve("", "")


@pytest.mark.parametrize("name", ["other", "Digits", "../etc", "a\nb", "x" * 5000])
def test_an_unknown_model(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        table(replica("w1")).resolve(name, "")
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message


def test_an_unknown_version_names_those_that_exist() -> None:
    with pytest.raises(NotFound, match=r"version 9 of model 'digits' is not deployed; deployed: 1, 2"):
        table(replica("w1"), versions=(1, 2)).resolve("digits", "9")


@pytest.mark.parametrize("aliases", [{}, {"best": 7}])
def test_an_alias_of_nothing_deployed(aliases: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match="'best' is neither a positive integer nor an alias"):
        table(replica("w1"), aliases=aliases).resolve("digits", "best")


@pytest.mark.parametrize("text", ["", "1", "best"])
@pytest.mark.parametrize(
    ("records", "told", "retry"),
    [
        ([], "is not placed on a worker yet", 1.0),
        ([replica("w1", ASSIGNED)], r"is loading \(1 replica on the way\)", 1.0),
        ([replica("w1", PULLING), replica("w2", LOADING)], r"is loading \(2 replicas on the way\)", 1.0),
        ([replica("w1", LOADING), replica("w2", FAILED, reason="no memory")], "elsewhere it failed: no memory", 1.0),
        ([replica("w1", FAILED, reason="bad graph", retry=8)], "could not be loaded: bad graph", 8.0),
        ([replica("w1", FAILED)], "could not be loaded: the worker gave no reason", None),
        ([replica("w1", FAILED, retry=9), replica("w2", FAILED, reason="x", retry=4)], "could not be loaded: x", 4.0),
        ([replica("w1", DRAINING)], "is being unloaded", 1.0),
        ([replica("w1", version=2)], "is not placed on a worker yet", 1.0),  # of a version nobody wants
    ],
)
def test_the_truth_when_nothing_is_ready(
    records: list[ReplicaRecord], told: str, retry: float | None, text: str
) -> None:
    with pytest.raises(Unavailable, match=told) as caught:
        table(*records, aliases={"best": 1}).resolve("digits", text)
    assert caught.value.message.startswith("version 1 of model 'digits' ")
    assert caught.value.retry_after == retry


def test_a_version_that_is_not_ready_is_not_replaced_when_it_was_named() -> None:
    routes = table(replica("w1"), replica("w1", LOADING, version=2), versions=(1, 2))
    with pytest.raises(Unavailable, match="version 2"):
        routes.resolve("digits", "2")
    assert routes.resolve("digits", "").version == 1


def test_a_deployment_without_versions_is_none() -> None:
    assert view_of(deployment("digits"), [replica("w1")]) is None


def test_a_default_that_is_not_wanted_is_passed_over() -> None:
    assert table(replica("w1"), versions=(1,), default=5).resolve("digits", "").version == 1


def test_tables_are_replaced_not_changed() -> None:
    before = table(replica("w1"))
    other = view_of(deployment("other", 1), [replica("w9", name="other")])
    after = before.with_models({"other": other})
    assert before.addresses == {"w1:1"}
    assert after.addresses == {"w1:1", "w9:1"}
    assert after.models["digits"] is before.models["digits"]
    assert after.with_models({"digits": None}).addresses == {"w9:1"}


def test_ready_only() -> None:
    for state in (ASSIGNED, PULLING, LOADING, DRAINING, FAILED):
        assert table(replica("w1", state)).addresses == frozenset()
    assert table(replica("w1", READY)).addresses == {"w1:1"}
