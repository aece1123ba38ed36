"""The protocol's repository methods: index, load, unload, told in terms of deployments.

`load` deploys a version and waits until it is READY; `unload` undeploys the model and waits until it is gone. Both are
wishes in the registry first, so a caller who leaves early loses the waiting, not the wish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from penstock.errors import DeadlineExceeded, InvalidArgument, TooLarge, Unavailable, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.v1 import models_pb2 as pb
from penstock.wire.call import Answer, Call

from .admission import Admission
from .messages import parsed
from .route_table import RouteTable, unavailable
from .routes import RoutingTable

M = TypeVar("M", bound=Message)

INDEX_LIMIT = 50_000
"""Models that RepositoryIndex lists at most; the method has no pages, ModelService.ListModels has."""
PAGE = 1_000
CATALOGUE_SECONDS = 5.0
"""How long RepositoryIndex waits for the registry before it answers with what the routes know."""


class Registry(Protocol):
    """The part of Control that is used."""

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[M],
        *,
        timeout: float,
        headers: Mapping[str, str],
    ) -> M: ...


class Repository:
    """Answers RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload."""

    def __init__(self, routes: RoutingTable, registry: Registry, admission: Admission | None = None) -> None:
        """admission: None to list everything for everybody."""
        self._routes = routes
        self._registry = registry
        self._admission = admission if admission is not None else Admission()

    async def index(self, call: Call) -> Answer:
        """Deployed versions with their state, and models that are published and not deployed; of what the caller may
        call.

        `ready` leaves READY versions only. Without a registry the answer holds what is deployed. Raises TooLarge when
        there are more models than one answer should hold.
        """
        request = parsed(oip.RepositoryIndexRequest, call.payload)
        if request.repository_name:
            raise Unsupported("this server has one repository; leave repository_name empty", field="repository_name")
        rows = deployed_rows(self._routes.table)
        if request.ready:
            rows = [row for row in rows if row.state == "READY"]
        else:
            rows = with_published(rows, await self._published(call))
        rows = [row for row in rows if self._admission.permitted(call.caller, row.name)]
        return Answer(oip.RepositoryIndexResponse(models=rows).SerializeToString())

    async def load(self, call: Call) -> Answer:
        """Deploys the model's newest version, or the one that the parameter `version` names, and waits until READY.

        Raises NotFound (registry), Unsupported for overrides that Triton knows, Unavailable when it cannot be loaded
        or the registry is away, DeadlineExceeded when it is still loading; the wish stays.
        """
        request = parsed(oip.RepositoryModelLoadRequest, call.payload)
        name = model_of(request)
        version = version_of(request.parameters)
        # Loading again must not shrink it.
        deploy = pb.DeployRequest(name=name, version=version, keep_options=True)
        response = await self._ask(call, "Deploy", deploy, pb.DeployResponse)
        wanted = response.deployment.default_version
        while True:
            news = self._routes.news
            view = self._routes.table.models.get(name)
            state = view.versions.get(wanted) if view is not None else None
            # One that is loaded on demand takes requests already, and nobody loads it before there is one.
            if state is not None and (state.replicas or state.on_demand):
                return Answer(oip.RepositoryModelLoadResponse().SerializeToString())
            if state is not None and state.failed:
                raise unavailable(name, state)
            reason = state.reason if state is not None else "is wanted and not placed yet"
            await _until(news, call, f"version {wanted} of model '{name}' {reason}; it goes on loading")

    async def unload(self, call: Call) -> Answer:
        """Undeploys every version of the model and waits until no worker has it. Unloading what is not there is
        fine. `unload_dependents` is accepted: there are no ensembles, so nothing depends on a model."""
        request = parsed(oip.RepositoryModelUnloadRequest, call.payload)
        name = model_of(request)
        for parameter in request.parameters:
            if parameter != "unload_dependents":
                raise Unsupported(f"parameter {parameter!r} is not supported for unloading", field="parameters")
        await self._ask(call, "Undeploy", pb.UndeployRequest(name=name), pb.UndeployResponse)
        while True:
            news = self._routes.news
            if not self._routes.lingers(name):
                return Answer(oip.RepositoryModelUnloadResponse().SerializeToString())
            await _until(news, call, f"model '{name}' is still being unloaded")

    async def _published(self, call: Call) -> list[pb.Model]:
        models: list[pb.Model] = []
        request = pb.ListModelsRequest(page_size=PAGE)
        timeout = min(CATALOGUE_SECONDS, call.remaining())
        try:
            async with asyncio.timeout(timeout):
                while True:
                    page = await self._registry.call(
                        "ModelService",
                        "ListModels",
                        request,
                        pb.ListModelsResponse,
                        timeout=timeout,
                        headers=call.headers,
                    )
                    models.extend(page.models)
                    if not page.next_page_token:
                        return models
                    if len(models) >= INDEX_LIMIT:
                        raise TooLarge(
                            f"the catalogue holds more than {INDEX_LIMIT} models; ask for ready ones only, "
                            "or page with penstock.v1.ModelService.ListModels"
                        )
                    request.page_token = page.next_page_token
        except (Unavailable, DeadlineExceeded, TimeoutError):
            return []

    async def _ask(self, call: Call, method: str, request: Message, response_class: type[M]) -> M:
        return await self._registry.call(
            "DeploymentService", method, request, response_class, timeout=call.remaining(), headers=call.headers
        )


def model_of(request: oip.RepositoryModelLoadRequest | oip.RepositoryModelUnloadRequest) -> str:
    """The model's name. KServe's own message has it in field 1, which is repository_name here (docs/protocol.md)."""
    if request.model_name:
        if request.repository_name:
            raise Unsupported("this server has one repository; leave repository_name empty", field="repository_name")
        return request.model_name
    if request.repository_name:
        return request.repository_name
    raise InvalidArgument("the request names no model", field="model_name")


def version_of(parameters: Mapping[str, oip.ModelRepositoryParameter]) -> str:
    """The version to load: parameter `version` (number or alias), empty for the newest."""
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise Unsupported(
                f"parameter {name[:40]!r}: a published version never changes; publish a new one instead",
                field="parameters",
            )
        if name != "version":
            raise Unsupported(f"parameter {name[:40]!r} is not supported for loading", field="parameters")
    if "version" not in parameters:
        return ""
    choice = parameters["version"].WhichOneof("parameter_choice")
    if choice == "int64_param":
        return str(parameters["version"].int64_param)
    if choice == "string_param":
        return parameters["version"].string_param
    raise InvalidArgument("parameter 'version' must be an integer or a string", field="parameters")


def deployed_rows(table: RouteTable) -> list[oip.RepositoryIndexResponse.ModelIndex]:
    """One row per deployed version, by name and version."""
    return [
        oip.RepositoryIndexResponse.ModelIndex(name=name, version=str(number), state=view.state, reason=view.reason)
        for name in sorted(table.models)
        for number, view in sorted(table.models[name].versions.items())
    ]


def with_published(
    rows: list[oip.RepositoryIndexResponse.ModelIndex], models: list[pb.Model]
) -> list[oip.RepositoryIndexResponse.ModelIndex]:
    """The rows, and one for each model whose newest version is not among them."""
    known = {(row.name, row.version) for row in rows}
    extra = [
        oip.RepositoryIndexResponse.ModelIndex(
            name=model.name, version=str(model.latest_version), state="UNAVAILABLE", reason="is not deployed"
        )
        for model in models
        if (model.name, str(model.latest_version)) not in known
    ]
    return sorted([*rows, *extra], key=lambda row: (row.name, int(row.version)))


async def _until(news: asyncio.Event, call: Call, late: str) -> None:
    """Waits for a change of the routes; raises DeadlineExceeded with the truth when none comes in time."""
    try:
        async with asyncio.timeout_at(call.deadline):
            await news.wait()
    except TimeoutError:
        raise DeadlineExceeded(late) from None
