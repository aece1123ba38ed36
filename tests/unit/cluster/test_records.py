"""Records: readable, stable, and patient with a newer writer."""

from __future__ import annotations

import pytest

from penstock.cluster.records import from_json, to_json
from penstock.errors import Internal
from penstock.internal.v1.records_pb2 import AssignedReplica, AssignmentRecord, DeploymentRecord, WorkerRecord
from penstock.kit.backoff import Backoff


def test_a_record_comes_back_as_it_was() -> None:
    record = AssignmentRecord(
        worker="worker-1", term=2**40, replicas=[AssignedReplica(name="digits", version=3, memory_bytes=7)]
    )
    assert from_json(AssignmentRecord, to_json(record)) == record


def test_equal_records_are_equal_bytes_on_one_line() -> None:
    one, other = DeploymentRecord(name="d"), DeploymentRecord(name="d")
    for alias in ("b", "a"):
        one.aliases[alias] = 1
    for alias in ("a", "b"):
        other.aliases[alias] = 1
    assert to_json(one) == to_json(other)
    assert b"\n" not in to_json(one)
    assert b'"name"' in to_json(one)


def test_fields_of_a_newer_release_are_skipped() -> None:
    assert from_json(WorkerRecord, b'{"id": "w", "colour": "blue"}') == WorkerRecord(id="w")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"memory_bytes": "many"}'])
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(Internal) as caught:
        from_json(WorkerRecord, data)
    assert "WorkerRecord" in caught.value.detail and "WorkerRecord" not in caught.value.message


def test_pauses_double_to_the_cap_and_start_again() -> None:
    backoff = Backoff(first=0.1, cap=1.0)
    for whole in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        assert whole / 2 <= backoff.next() <= whole
    for _ in range(5000):
        assert backoff.next() <= 1.0
    backoff.reset()
    assert backoff.next() <= 0.1


def test_a_pause_is_a_drawn_share_of_the_whole() -> None:
    for drawn, least, share in ((0.0, 0.5, 0.5), (0.5, 0.5, 0.75), (0.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.25, 0.0, 0.25)):
        backoff = Backoff(first=0.1, cap=1.0, chance=lambda drawn=drawn: drawn)  # type: ignore[misc]
        assert [backoff.next(least) for _ in range(5)] == pytest.approx([share * w for w in (0.1, 0.2, 0.4, 0.8, 1.0)])
