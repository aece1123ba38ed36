"""What etcd says, in our words: its refusals by their texts, its alarms, its keys."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from penstock.cluster import messages
from penstock.cluster.kv import Compacted, LeaseGone, NoSpace, Rewound
from penstock.errors import Internal, PenstockError, PermissionDenied, ResourceExhausted, TooLarge, Unavailable

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        # The texts are etcd's: https://github.com/etcd-io/etcd/blob/main/api/v3rpc/rpctypes/error.go
        (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", NoSpace),
        (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", ResourceExhausted),
        (Code.RESOURCE_EXHAUSTED, "grpc: received message larger than max (5000018 vs. 2097152)", TooLarge),
        (Code.INVALID_ARGUMENT, "etcdserver: request is too large", TooLarge),
        (Code.NOT_FOUND, "etcdserver: requested lease not found", LeaseGone),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", Compacted),
        (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", Rewound),
        (Code.UNAVAILABLE, "etcdserver: no leader", Unavailable),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", Unavailable),
        (Code.PERMISSION_DENIED, "etcdserver: permission denied", PermissionDenied),
        (Code.DATA_LOSS, "etcdserver: corrupt cluster", Internal),
    ],
)
def test_refusals(code: grpc.StatusCode, text: str, kind: type[PenstockError]) -> None:
    failure = messages.refused(AioRpcError(code, Metadata(), Metadata(), details=text))
    assert type(failure) is kind
    assert text in failure.detail and "etcdserver" not in failure.message


def test_silence_is_being_away() -> None:
    assert type(messages.refused(None)) is Unavailable


def test_alarms_are_read_from_a_status() -> None:
    said = ["memberID:15419593220200967223 alarm:NOSPACE ", "etcdserver: no leader", "memberID:1 alarm:CORRUPT "]
    assert messages.alarms(said) == {"NOSPACE", "CORRUPT"}
    assert messages.alarms([]) == frozenset()


def test_a_prefix_ends_with_a_slash_and_anything_else_is_one_key() -> None:
    assert messages.end_of("/penstock/workers/") == b"/penstock/workers0"
    assert messages.end_of("/penstock/assignments/worker-1") == b""
