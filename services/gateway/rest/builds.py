"""The routes of builds under /api/v1: JSON in, one call of penstock.v1.BuildService, JSON out."""

from __future__ import annotations

import json
from typing import Any, Final

from google.protobuf.message import Message

from penstock.errors import InvalidArgument
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2

from . import events, json_text
from .exchange import Exchange
from .fields import INTEGER, OBJECTS, TEXT, TEXTS, VERSION, Field, integer, read_body, read_query
from .management import MAX_BODY_BYTES, MAX_DEPTH, PAGE, Control, Response
from .messages import to_plain
from .replies import Reply, Streamed, json_reply

BUILD: Final = (
    Field("version", VERSION, "Version number or alias to start from; the newest without."),
    Field("steps", OBJECTS, 'Steps, each `{"step", "id"?, "parameters"?, "inputs"?}`; those of the manifest without.'),
    Field("targets", OBJECTS, "What to compile for: parameters of `compile`, once per target."),
    Field("files", TEXTS, "Digests of uploaded artifacts by role, such as `samples`."),
    Field("request_key", TEXT, "Chosen by the caller; makes a retry safe."),
)
LIST_BUILDS: Final = (Field("name", TEXT, "Only this model's."), *PAGE)
EVENTS: Final = (Field("offset", INTEGER, "First line of the log that is wanted; 0 without."),)
LAST_EVENT: Final = "last-event-id"
BUILDS: Final = "penstock.v1.BuildService"
_STEP: Final = frozenset(("step", "id", "parameters", "inputs"))


class BuildRoutes:
    """Answers for the routes of table.py about builds."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def create(self, exchange: Exchange) -> Reply:
        body = bytes(await exchange.body(MAX_BODY_BYTES))
        values = read_body(json_text.parse(body, max_depth=MAX_DEPTH) if body.strip() else {}, BUILD)
        request = pb.CreateBuildRequest(
            name=exchange.path["model"],
            version=values.get("version", ""),
            request_key=values.get("request_key", ""),
            spec=_spec(values),
        )
        answer = await self._ask(exchange, "CreateBuild", request, pb.CreateBuildResponse)
        return _plain(answer.build, status=201)

    async def get(self, exchange: Exchange) -> Reply:
        request = pb.GetBuildRequest(id=exchange.path["build"])
        return _plain((await self._ask(exchange, "GetBuild", request, pb.GetBuildResponse)).build)

    async def list_builds(self, exchange: Exchange) -> Reply:
        request = pb.ListBuildsRequest(**read_query(exchange.query, LIST_BUILDS))
        return _plain(await self._ask(exchange, "ListBuilds", request, pb.ListBuildsResponse))

    async def events(self, exchange: Exchange) -> Reply:
        if exchange.head.old:
            raise InvalidArgument("this answer comes in pieces, which HTTP/1.0 does not know; use HTTP/1.1")
        offset = read_query(exchange.query, EVENTS).get("offset", 0)
        if seen := exchange.headers.get(LAST_EVENT):
            offset = integer(seen, LAST_EVENT)
        request = pb.WatchBuildRequest(id=exchange.path["build"], offset=offset)
        timeout, headers = exchange.remaining(), exchange.credentials()
        answers = self._control.watch(
            BUILDS, "WatchBuild", request, pb.WatchBuildResponse, headers=headers, timeout=timeout
        )
        # What is wrong with the request is known before the first event, so that it has a status of its own.
        first = await exchange.while_connected(anext(answers, None))
        return Streamed(media_type=events.MEDIA_TYPE, pieces=events.of_build(first, answers, exchange.request_id))

    async def cancel(self, exchange: Exchange) -> Reply:
        request = pb.CancelBuildRequest(id=exchange.path["build"])
        return _plain((await self._ask(exchange, "CancelBuild", request, pb.CancelBuildResponse)).build)

    async def overrides(self, exchange: Exchange) -> Reply:
        request = pb.ListOverridesRequest(**read_query(exchange.query, LIST_BUILDS[:1]))
        return _plain(await self._ask(exchange, "ListOverrides", request, pb.ListOverridesResponse))

    async def _ask(self, exchange: Exchange, method: str, request: Message, response: type[Response]) -> Response:
        call = self._control.call(
            BUILDS, method, request, response, timeout=exchange.remaining(), headers=exchange.credentials()
        )
        return await exchange.while_connected(call)


def _plain(message: Message, status: int = 200) -> Reply:
    return json_reply(to_plain(message), status)


def _spec(values: dict[str, Any]) -> manifest_pb2.BuildSpec | None:
    """What the body asks for; None for what the manifest says."""
    if not values.get("steps"):
        return None
    spec = manifest_pb2.BuildSpec(files=values.get("files") or {})
    for index, step in enumerate(values["steps"]):
        field = f"steps[{index}]"
        if not isinstance(step, dict) or set(step) - _STEP or not isinstance(step.get("step"), str):
            text = f"{field}: must be an object with `step`, and may have id, parameters and inputs"
            raise InvalidArgument(text, field=field)
        inputs = step.get("inputs") or {}
        named = step.get("id") or ""
        if not isinstance(named, str) or not _texts(inputs) or not isinstance(step.get("parameters") or {}, dict):
            text = f"{field}: id is a text, parameters an object, inputs an object of texts"
            raise InvalidArgument(text, field=field)
        spec.steps.add(step=step["step"], id=named, parameters=json.dumps(step.get("parameters") or {}), inputs=inputs)
    spec.targets.extend(json.dumps(target) for target in values.get("targets") or ())
    return spec


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
