"""Who could take over."""

from __future__ import annotations

import pytest

from penstock.internal.v1.records_pb2 import WorkerRecord
from services.worker.departure import somebody_else


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ({}, False),
        ({"me": True}, False),
        ({"me": False}, False),
        ({"me": True, "other": False}, True),
        ({"me": True, "other": True}, False),
        ({"me": True, "other": True, "third": False}, True),
    ],
)
def test_somebody_else_is_a_live_worker_that_stays(workers: dict[str, bool], expected: bool) -> None:
    records = {f"/penstock/workers/{name}": WorkerRecord(id=name, draining=gone) for name, gone in workers.items()}
    assert somebody_else(records, "me") is expected
