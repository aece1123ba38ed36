"""The bridge as an ASGI application: the route table, grouped by path, over handlers and control."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import penstock

from . import openapi
from .endpoint import Authenticate, Endpoint, House, routing_failure
from .inference import Inference, InferenceRoutes
from .management import Control, ManagementRoutes
from .operations import Operation
from .pages import Pages
from .table import inference_operations, management_operations
from .uploads import UploadRoutes


def build_app(
    *,
    inference: Inference,
    control: Control,
    ready: Callable[[], str | None],
    max_body_bytes: int,
    default_timeout: float,
    authenticate: Authenticate,
) -> Starlette:
    """The application; arguments as for serve_rest."""
    pages = Pages()
    operations = [
        *inference_operations(InferenceRoutes(inference, ready)),
        *management_operations(ManagementRoutes(control), UploadRoutes(control)),
        *pages.operations(),
    ]
    pages.document = openapi.document(operations, penstock.__version__)
    house = House(authenticate, max_body_bytes, default_timeout)
    app = Starlette(routes=routes(operations, house))
    app.router.redirect_slashes = False
    app.router.default = partial(_nothing, max_body_bytes)
    return app


def routes(operations: list[Operation], house: House) -> list[Route]:
    """A route per path, in the order of the table; fixed paths come before those with parameters."""
    paths: dict[str, list[Operation]] = {}
    for operation in operations:
        paths.setdefault(operation.path, []).append(operation)
    ordered = sorted(paths.items(), key=lambda entry: "{" in entry[0])
    return [Route(path, _endpoint(rows, house), name=path) for path, rows in ordered]


def _endpoint(rows: list[Operation], house: House) -> ASGIApp:
    return Endpoint(rows, house)


async def _nothing(limit: int, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await routing_failure(scope, receive, send, HTTPException(404), limit)
