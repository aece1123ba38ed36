"""Every error of the table, in both dialects."""

from __future__ import annotations

import orjson
import pytest

from penstock import errors
from services.gateway.rest.replies import Dialect, error_reply, routing_error

# wire.md 4.2: INTERNAL 500, NOT_FOUND 404, UNAVAILABLE 503, UNSUPPORTED 501, everything else of Triton's 400; those
# that Triton does not have keep their own.
TRITON = {
    "INVALID_ARGUMENT": 400,
    "INVALID_MANIFEST": 400,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 400,
    "CONFLICT": 400,
    "IN_USE": 400,
    "GATE_FAILED": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "TOO_LARGE": 413,
    "RESOURCE_EXHAUSTED": 429,
    "DEADLINE_EXCEEDED": 504,
    "CANCELLED": 400,
    "UNAVAILABLE": 503,
    "UNSUPPORTED": 501,
    "INTERNAL": 500,
}


def test_the_table_is_complete() -> None:
    assert {error.code.name for error in errors.ALL} == set(TRITON)


@pytest.mark.parametrize("kind", errors.ALL, ids=lambda kind: kind.code.name)
def test_inference_dialect(kind: type[errors.PenstockError]) -> None:
    reply = error_reply(kind("what is wrong", detail="secret"), Dialect.INFERENCE, "r1")
    assert reply.status == TRITON[kind.code.name]
    assert orjson.loads(reply.body) == {"error": "what is wrong"}
    assert ("retry-after" in reply.headers) == (reply.status == 429)
    assert ("www-authenticate" in reply.headers) == (reply.status == 401)


@pytest.mark.parametrize("kind", errors.ALL, ids=lambda kind: kind.code.name)
def test_management_dialect(kind: type[errors.PenstockError]) -> None:
    reply = error_reply(kind("what is wrong", field="f", detail="secret"), Dialect.MANAGEMENT, "r1")
    assert reply.status == kind.code.http
    assert orjson.loads(reply.body) == {
        "error": {
            "code": kind.code.name,
            "message": "what is wrong",
            "field": "f",
            "retryable": kind.code.retryable,
            "request_id": "r1",
        }
    }


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.2, "2"), (30, "30")])
@pytest.mark.parametrize("kind", [errors.Unavailable, errors.ResourceExhausted])
def test_retry_after_is_whole_seconds(kind: type[errors.PenstockError], seconds: float, header: str) -> None:
    reply = error_reply(kind("later", retry_after=seconds), Dialect.INFERENCE, "r1")
    assert reply.headers["retry-after"] == header


def test_where_nobody_knows_when_none_is_invented() -> None:
    assert "retry-after" not in error_reply(errors.Unavailable("later"), Dialect.INFERENCE, "r1").headers
    assert error_reply(errors.ResourceExhausted("full"), Dialect.INFERENCE, "r1").headers["retry-after"] == "1"


def test_routing_errors_speak_the_dialect_of_the_path() -> None:
    assert isinstance(orjson.loads(routing_error(404, "/v2/nope", {}, "r").body)["error"], str)
    assert orjson.loads(routing_error(404, "/api/v1/nope", {}, "r").body)["error"]["code"] == "NOT_FOUND"
    refused = orjson.loads(routing_error(405, "/api/v1/status", {"allow": "GET"}, "r").body)["error"]
    assert refused["code"] == "METHOD_NOT_ALLOWED"
    assert "GET" in refused["message"]
