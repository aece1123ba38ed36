"""Paths to operations."""

from __future__ import annotations

import pytest

from services.gateway.rest.operations import Operation
from services.gateway.rest.replies import Dialect, Reply
from services.gateway.rest.routing import Router


async def nothing(_: object) -> Reply:
    return Reply()


def operation(method: str, path: str) -> Operation:
    return Operation(method, path, path, tag="t", dialect=Dialect.INFERENCE, answer=nothing)


ROUTER = Router(
    [
        operation(*row.split())
        for row in (
            "GET /v2", "GET /v2/models/stats", "GET /v2/models/{model}", "POST /v2/models/{model}/infer",
            "GET /v2/models/{model}/versions/{version}", "DELETE /v2/models/{model}/versions/{version}",
            "POST /v2/repository/models/{model}/load", "POST /v2/repository/{repository}/models/{model}/load",
            "POST /v2/repository/{repository}/index",
        )
    ]
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "template", "parameters"),
    [
        ("/v2", "/v2", {}),
        ("/v2/models/stats", "/v2/models/stats", {}),
        ("/v2/models/m", "/v2/models/{model}", {"model": "m"}),
        ("/v2/models/stats/infer", "/v2/models/{model}/infer", {"model": "stats"}),
        ("/v2/models/m/versions/3", "/v2/models/{model}/versions/{version}", {"model": "m", "version": "3"}),
        ("/v2/repository/models/m/load", "/v2/repository/models/{model}/load", {"model": "m"}),
        # What looks like the beginning of one path may be a parameter of another.
        ("/v2/repository/models/index", "/v2/repository/{repository}/index", {"repository": "models"}),
        (
            "/v2/repository/models/models/m/load",
            "/v2/repository/{repository}/models/{model}/load",
            {"repository": "models", "model": "m"},
        ),
    ],
)
def test_what_is_found(path: str, template: str, parameters: dict[str, str]) -> None:
    found = ROUTER.find(path)
    assert found is not None
    methods, given = found
    assert {operation.path for operation in methods.values()} == {template}
    assert given == parameters


@pytest.mark.parametrize(
    "path",
    ["", "*", "/", "/v2/", "/v2/models", "/v2/models/", "/v2/models//infer", "/v2/models/m/", "/v2/models/a/b",
     "v2", "/v2/models/m/versions/3/infer", "/" * 60_000, "/v2" * 20_000],
)  # fmt: skip
def test_what_is_not(path: str) -> None:
    assert ROUTER.find(path) is None


def test_methods() -> None:
    found = ROUTER.find("/v2/models/m/versions/3")
    assert found is not None
    assert set(found[0]) == {"GET", "HEAD", "DELETE"}
    assert found[0]["HEAD"] is found[0]["GET"]
