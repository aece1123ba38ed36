"""The management routes under /api/v1: JSON in, one call of a penstock.v1 service, JSON out.

Nothing is decided here: the registry and the scheduler answer; this module reads requests strictly and writes answers
with the proto's field names.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import Message

from penstock.errors import InvalidArgument
from penstock.v1 import cluster_pb2, manifest_pb2, models_pb2, storage_pb2, tenants_pb2

from . import json_text
from .exchange import Exchange
from .fields import (
    FLAG,
    INTEGER,
    LIST,
    MESSAGE,
    NUMBER,
    TEXT,
    TEXTS,
    VERSION,
    Field,
    integer,
    read_body,
    read_query,
)
from .messages import to_plain
from .replies import Reply, json_reply

Response = TypeVar("Response", bound=Message)

MODELS: Final = "penstock.v1.ModelService"
ARTIFACTS: Final = "penstock.v1.ArtifactService"
DEPLOYMENTS: Final = "penstock.v1.DeploymentService"
STORAGE: Final = "penstock.v1.StorageService"
TENANTS: Final = "penstock.v1.TenantService"
CLUSTER: Final = "penstock.v1.ClusterService"

MAX_BODY_BYTES: Final = 4 << 20
"""A manifest of 1 MiB in JSON's escapes, and its digests."""
MAX_DEPTH: Final = 32

PAGE: Final = (
    Field("page_size", INTEGER, "At most this many, 1 to 1000; 100 without.", maximum=1000),
    Field("page_token", TEXT, "From `next_page_token` of the page before."),
)
LIST_MODELS: Final = (
    Field("query", TEXT, "Words that must occur in name, description, author, framework or tags."),
    Field("tag", TEXT, "`key:value` that must be among the tags; may be repeated."),
    *PAGE,
)
PUBLISH: Final = (
    Field("manifest", TEXT, "The model.yaml as text, YAML or JSON, at most 1 MiB; its name is that of the path.", True),
    Field("digests", TEXTS, "Digest (`sha256:…`) of each uploaded file by role."),
    Field("request_key", TEXT, "Chosen by the caller; makes a retry safe."),
    Field("version", INTEGER, "Version number to take; the next one without."),
)
SET_ALIAS: Final = (
    Field("version", INTEGER, "Version to point at.", True),
    Field("expected_version", INTEGER, "Where the alias must point now; 0 where it must not exist. Any without."),
)
DELETE_ALIAS: Final = (Field("expected_version", INTEGER, "Where the alias must point now. Any without."),)
DEPLOY: Final = (
    Field("version", VERSION, "Version number or alias; the newest without."),
    Field("replicas", INTEGER, "Wanted replicas; 1 without.", maximum=(1 << 31) - 1),
    Field("scaling", MESSAGE, "How replicas follow demand, instead of `replicas`.", message=models_pb2.Scaling),
    Field("placement", MESSAGE, "Where it runs, instead of the manifest's.", message=manifest_pb2.Placement),
    Field("tenant", TEXT, "Whose reserved capacity it may use."),
    Field("keep_options", FLAG, "True to keep the four above as they are."),
    Field("keep_others", FLAG, "True to leave other versions as they are and the default where it is."),
    Field("override_gate", TEXT, "Why to deploy a version whose gate failed; recorded with the caller's name."),
)
COLLECT: Final = (Field("dry_run", FLAG, "True to say only what would go."),)
SET_TENANT: Final = (
    Field("models", LIST, "Names, beginnings of names such as `fraud-*`, or `*`; none when empty.", required=True),
    Field("rate", NUMBER, "Requests a second; no limit without."),
    Field("burst", INTEGER, "Requests at once after a pause; a second's worth without.", maximum=(1 << 31) - 1),
    Field("concurrent", INTEGER, "Requests under way at a time; no limit without.", maximum=(1 << 31) - 1),
)
STATUS: Final = (Field("name", TEXT, "Only this model."),)
EXPLAIN: Final = (Field("version", INTEGER, "Only this version; all that are deployed without."),)


class Control(Protocol):
    """The management plane behind the gateway."""

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[Response],
        *,
        timeout: float,
        headers: Mapping[str, str],
    ) -> Response:
        """One unary call of a penstock.v1 service by full name; raises what the service raised."""

    def watch(
        self,
        service: str,
        method: str,
        request: Message,
        response_class: type[Response],
        *,
        headers: Mapping[str, str],
        timeout: float | None = None,
    ) -> AsyncGenerator[Response, None]:
        """One server-streaming call, as `call`; closing it ends the call."""

    async def upload(
        self,
        header: models_pb2.UploadHeader,
        data: AsyncIterator[bytes],
        *,
        headers: Mapping[str, str],
        timeout: float | None = None,
    ) -> models_pb2.UploadArtifactResponse:
        """ArtifactService.UploadArtifact; data: pieces of any size. May answer before the last of them."""


class ManagementRoutes:
    """Answers for the routes of table.py, but for uploads (uploads.py)."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def list_models(self, exchange: Exchange) -> Reply:
        tags = _tags(exchange.query.getlist("tag"))
        values = read_query(exchange.query, LIST_MODELS)
        values.pop("tag", None)
        request = models_pb2.ListModelsRequest(**values, tags=tags)
        return _plain(await self._call(exchange, MODELS, "ListModels", request, models_pb2.ListModelsResponse))

    async def get_model(self, exchange: Exchange) -> Reply:
        request = models_pb2.GetModelRequest(name=exchange.path["model"])
        answer = await self._call(exchange, MODELS, "GetModel", request, models_pb2.GetModelResponse)
        return _plain(answer.model)

    async def list_versions(self, exchange: Exchange) -> Reply:
        request = models_pb2.ListVersionsRequest(name=exchange.path["model"], **read_query(exchange.query, PAGE))
        return _plain(await self._call(exchange, MODELS, "ListVersions", request, models_pb2.ListVersionsResponse))

    async def get_version(self, exchange: Exchange) -> Reply:
        request = models_pb2.GetVersionRequest(name=exchange.path["model"], version=exchange.path["version"])
        answer = await self._call(exchange, MODELS, "GetVersion", request, models_pb2.GetVersionResponse)
        return _plain(answer.version)

    async def publish(self, exchange: Exchange) -> Reply:
        values = await _read(exchange, PUBLISH)
        request = models_pb2.PublishVersionRequest(name=exchange.path["model"], **values)
        answer = await self._call(exchange, MODELS, "PublishVersion", request, models_pb2.PublishVersionResponse)
        return _plain(answer.version, status=201)

    async def delete_version(self, exchange: Exchange) -> Reply:
        version = integer(exchange.path["version"], "version")
        request = models_pb2.DeleteVersionRequest(name=exchange.path["model"], version=version)
        await self._call(exchange, MODELS, "DeleteVersion", request, models_pb2.DeleteVersionResponse)
        return Reply(204)

    async def set_alias(self, exchange: Exchange) -> Reply:
        values = await _read(exchange, SET_ALIAS)
        request = models_pb2.SetAliasRequest(name=exchange.path["model"], alias=exchange.path["alias"], **values)
        return _plain(await self._call(exchange, MODELS, "SetAlias", request, models_pb2.SetAliasResponse))

    async def delete_alias(self, exchange: Exchange) -> Reply:
        values = read_query(exchange.query, DELETE_ALIAS)
        request = models_pb2.DeleteAliasRequest(name=exchange.path["model"], alias=exchange.path["alias"], **values)
        await self._call(exchange, MODELS, "DeleteAlias", request, models_pb2.DeleteAliasResponse)
        return Reply(204)

    async def get_artifact(self, exchange: Exchange) -> Reply:
        request = models_pb2.GetArtifactRequest(digest=exchange.path["digest"])
        return _plain(await self._call(exchange, ARTIFACTS, "GetArtifact", request, models_pb2.GetArtifactResponse))

    async def collect(self, exchange: Exchange) -> Reply:
        request = storage_pb2.CollectArtifactsRequest(**await _read(exchange, COLLECT))
        response = storage_pb2.CollectArtifactsResponse
        return _plain((await self._call(exchange, STORAGE, "CollectArtifacts", request, response)).collection)

    async def list_collections(self, exchange: Exchange) -> Reply:
        request = storage_pb2.ListCollectionsRequest(**read_query(exchange.query, PAGE[:1]))
        response = storage_pb2.ListCollectionsResponse
        return _plain(await self._call(exchange, STORAGE, "ListCollections", request, response))

    async def list_tenants(self, exchange: Exchange) -> Reply:
        request = tenants_pb2.ListTenantsRequest(**read_query(exchange.query, PAGE))
        return _plain(await self._call(exchange, TENANTS, "ListTenants", request, tenants_pb2.ListTenantsResponse))

    async def get_tenant(self, exchange: Exchange) -> Reply:
        request = tenants_pb2.GetTenantRequest(name=exchange.path["tenant"])
        answer = await self._call(exchange, TENANTS, "GetTenant", request, tenants_pb2.GetTenantResponse)
        return _plain(answer.tenant)

    async def set_tenant(self, exchange: Exchange) -> Reply:
        tenant = tenants_pb2.Tenant(name=exchange.path["tenant"], **await _read(exchange, SET_TENANT))
        request = tenants_pb2.SetTenantRequest(tenant=tenant)
        answer = await self._call(exchange, TENANTS, "SetTenant", request, tenants_pb2.SetTenantResponse)
        return _plain(answer.tenant)

    async def delete_tenant(self, exchange: Exchange) -> Reply:
        request = tenants_pb2.DeleteTenantRequest(name=exchange.path["tenant"])
        await self._call(exchange, TENANTS, "DeleteTenant", request, tenants_pb2.DeleteTenantResponse)
        return Reply(204)

    async def list_deployments(self, exchange: Exchange) -> Reply:
        answer = await self._call(
            exchange,
            DEPLOYMENTS,
            "ListDeployments",
            models_pb2.ListDeploymentsRequest(),
            models_pb2.ListDeploymentsResponse,
        )
        return _plain(answer)

    async def deploy(self, exchange: Exchange) -> Reply:
        request = models_pb2.DeployRequest(name=exchange.path["model"], **await _read(exchange, DEPLOY))
        answer = await self._call(exchange, DEPLOYMENTS, "Deploy", request, models_pb2.DeployResponse)
        return _plain(answer.deployment)

    async def undeploy(self, exchange: Exchange) -> Reply:
        version = integer(exchange.path["version"], "version") if "version" in exchange.path else 0
        request = models_pb2.UndeployRequest(name=exchange.path["model"], version=version)
        await self._call(exchange, DEPLOYMENTS, "Undeploy", request, models_pb2.UndeployResponse)
        return Reply(204)

    async def status(self, exchange: Exchange) -> Reply:
        request = cluster_pb2.GetStatusRequest(**read_query(exchange.query, STATUS))
        answer = await self._call(exchange, CLUSTER, "GetStatus", request, cluster_pb2.GetStatusResponse)
        return _plain(answer.status)

    async def explain(self, exchange: Exchange) -> Reply:
        values = read_query(exchange.query, EXPLAIN)
        request = cluster_pb2.ExplainPlacementRequest(name=exchange.path["model"], **values)
        answer = cluster_pb2.ExplainPlacementResponse
        return _plain(await self._call(exchange, CLUSTER, "ExplainPlacement", request, answer))

    async def drain(self, exchange: Exchange) -> Reply:
        request = cluster_pb2.DrainWorkerRequest(worker=exchange.path["worker"])
        answer = cluster_pb2.DrainWorkerResponse
        return _plain(await self._call(exchange, CLUSTER, "DrainWorker", request, answer))

    async def undrain(self, exchange: Exchange) -> Reply:
        request = cluster_pb2.UndrainWorkerRequest(worker=exchange.path["worker"])
        await self._call(exchange, CLUSTER, "UndrainWorker", request, cluster_pb2.UndrainWorkerResponse)
        return Reply(204)

    async def _call(
        self, exchange: Exchange, service: str, method: str, request: Message, response: type[Response]
    ) -> Response:
        call = self._control.call(
            service, method, request, response, timeout=exchange.remaining(), headers=exchange.credentials()
        )
        return await exchange.while_connected(call)


def _plain(message: Message, status: int = 200) -> Reply:
    return json_reply(to_plain(message), status)


async def _read(exchange: Exchange, fields: tuple[Field, ...]) -> dict[str, Any]:
    body = bytes(await exchange.body(MAX_BODY_BYTES))
    return read_body(json_text.parse(body, max_depth=MAX_DEPTH) if body.strip() else {}, fields)


def _tags(entries: list[str]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for entry in entries:
        key, colon, value = entry.partition(":")
        if not key or not colon:
            raise InvalidArgument("tag: must be `key:value`", field="tag")
        tags[key] = value
    return tags
