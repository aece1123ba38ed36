"""Reports in parts: cut where they are made, put together where they are heard, never half of one."""

from __future__ import annotations

import pytest

from penstock.cluster import reports
from penstock.cluster.reports import MOST_GRAY, MOST_PARTS, MOST_VERSIONS, parts_of
from penstock.internal.v1 import demand_pb2 as pb
from services.scheduler import parts
from services.scheduler.demand import Demand, Said
from services.scheduler.parts import OPEN_SECONDS, Parts, Report
from services.scheduler.snapshot import VersionId

A, B, C = (VersionId(name, 1) for name in "abc")


def told(*versions: VersionId) -> Report:
    return Report({version: Said(rate=1.0) for version in versions})


def report(versions: int, gray: int = 0) -> pb.ReportDemandRequest:
    return pb.ReportDemandRequest(
        source="g1",
        seconds=1.0,
        versions=[pb.VersionDemand(name=f"m{number}", version=1, requests=number) for number in range(versions)],
        gray=[pb.GrayReplica(name="m", version=1, worker=f"w{number}") for number in range(gray)],
    )


def test_a_report_that_fits_is_one_message() -> None:
    whole = report(MOST_VERSIONS, MOST_GRAY)
    assert parts_of(whole) == [whole]


@pytest.mark.parametrize(("versions", "gray"), [(MOST_VERSIONS + 1, 0), (3, MOST_GRAY + 1), (2 * MOST_VERSIONS + 5, 7)])
def test_a_larger_one_is_cut_and_nothing_is_lost(versions: int, gray: int) -> None:
    whole = report(versions, gray)
    made = parts_of(whole)
    assert [(each.source, each.seconds, each.parts, each.part) for each in made] == [
        ("g1", 1.0, len(made), number) for number in range(len(made))
    ]
    assert all(len(each.versions) <= MOST_VERSIONS and len(each.gray) <= MOST_GRAY for each in made)
    assert [item for each in made for item in each.versions] == list(whole.versions)
    assert [item for each in made for item in each.gray] == list(whole.gray)


def test_of_too_many_those_that_are_asked_for_most_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST_VERSIONS", 2)
    made = parts_of(report(2 * MOST_PARTS + 3))
    assert len(made) == MOST_PARTS
    assert [item.requests for each in made for item in each.versions] == [*range(2 * MOST_PARTS + 2, 2, -1)]


def test_nothing_counts_before_the_last_part_and_then_all_does() -> None:
    gathered, demand = Parts(), Demand()
    demand.report("g1", told(A, B).versions, [], 0.0)
    first = gathered.take("g1", 2, 0, Report({A: Said(rate=2.0)}, [(A, "w1")]), 1.0)
    assert first is None
    whole = gathered.take("g1", 2, 1, Report({B: Said(rate=3.0)}, [(B, "w2")]), 1.0)
    assert whole is not None and whole.gray == [(A, "w1"), (B, "w2")]
    demand.report("g1", whole.versions, whole.gray, 1.0)
    rates = [found.rate for version in (A, B) if (found := demand.sample(version, 1, 1.0)) is not None]
    assert rates == [2.0, 3.0]
    assert demand.heard(1.0) == 1
    assert gathered.take("g1", 2, 1, told(C), 1.0) is None, "the report is over"


def test_a_report_that_lacks_a_part_says_nothing() -> None:
    gathered = Parts()
    assert gathered.take("g1", 3, 0, told(A), 0.0) is None
    assert gathered.take("g1", 3, 2, told(C), 0.0) is None
    assert gathered.take("g1", 3, 1, told(B), 0.0) is None
    assert gathered.take("g1", 2, 0, told(A), 0.0) is None
    assert gathered.take("g1", 2, 1, told(B), OPEN_SECONDS + 1) is None


def test_a_new_report_takes_the_place_of_one_that_is_not_whole_and_sources_do_not_mix() -> None:
    gathered = Parts()
    assert gathered.take("g1", 2, 0, told(A), 0.0) is None
    assert gathered.take("g2", 2, 0, told(C), 0.0) is None
    assert gathered.take("g1", 2, 0, told(B), 1.0) is None
    assert gathered.take("g1", 2, 1, told(), 1.0) == told(B)
    assert gathered.take("g2", 0, 0, told(A), 1.0) == told(A)
    assert gathered.take("g2", 2, 1, told(B), 1.0) is None


def test_what_is_held_is_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_HELD", 2)
    gathered = Parts()
    for number, source in enumerate(("g1", "g2", "g3")):
        assert gathered.take(source, 2, 0, told(A), float(number)) is None
    assert gathered.take("g1", 2, 1, told(B), 3.0) is None
    assert gathered.take("g2", 2, 1, told(B), 3.0) == told(A, B)
    assert gathered.take("g3", 2, 1, told(B), 3.0) == told(A, B)
