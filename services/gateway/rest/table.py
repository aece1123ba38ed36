"""The one table of routes: what the application serves, what /openapi.json says and what the tests walk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from penstock.oip import inference_pb2 as oip
from penstock.v1 import builds_pb2, cluster_pb2, models_pb2, storage_pb2, tenants_pb2

from . import builds as build
from . import management as manage
from . import shapes
from .builds import BuildRoutes
from .events import MEDIA_TYPE
from .fields import INTEGER, TEXT, Field
from .inference import OCTETS, REGION, InferenceRoutes
from .management import ManagementRoutes
from .operations import Operation
from .replies import JSON, Dialect
from .uploads import UPLOAD, UploadRoutes

UPLOAD_SECONDS: Final = 3_600.0
EVENTS_SECONDS: Final = 3_600.0

_oip = partial(Operation, dialect=Dialect.INFERENCE)
_api = partial(Operation, dialect=Dialect.MANAGEMENT)

_BINARY_HEADER: Final = (
    Field(
        "Inference-Header-Content-Length", INTEGER, "Size of the JSON part when binary tensors follow it; 0 for raw."
    ),
    Field("Content-Encoding", TEXT, "gzip or deflate; limits hold for what comes out."),
)
_RANGE_HEADER: Final = (Field("Content-Range", TEXT, "`bytes <first>-<last>/<size>`, instead of offset and size."),)


def inference_operations(routes: InferenceRoutes) -> list[Operation]:
    """Everything under /v2."""
    return [
        *_server(routes),
        *_models(routes),
        *_repository(routes),
        *_regions(routes),
        *_unsupported(routes),
    ]


def management_operations(routes: ManagementRoutes, uploads: UploadRoutes, builds: BuildRoutes) -> list[Operation]:
    """Everything under /api/v1."""
    return [
        *_catalogue(routes),
        *_artifacts(routes, uploads),
        *_builds(builds),
        *_deployments(routes),
        *_tenants(routes),
    ]


def _server(routes: InferenceRoutes) -> Iterator[Operation]:
    live, ready = shapes.LIVE, shapes.READY
    health, server = partial(_oip, "GET", tag="health", open=True), partial(_oip, "GET", tag="server")
    yield health("/v2/health/live", "Is the process alive?", answer=routes.live, result=live)
    yield health(
        "/v2/health/ready", "Does it take requests? 400 with the reason if not.", answer=routes.ready, result=ready
    )
    metadata = server(
        "/v2", "Name, version and extensions.", answer=routes.server_metadata, result=oip.ServerMetadataResponse
    )
    yield metadata
    yield replace(metadata, path="/v2/")
    stats = "Statistics of every model."
    yield server("/v2/models/stats", stats, answer=routes.stats, result=oip.ModelStatisticsResponse)


def _models(routes: InferenceRoutes) -> Iterator[Operation]:
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        get = partial(_oip, "GET", tag="models")
        yield get(base, "Inputs, outputs, versions.", answer=routes.model_metadata, result=oip.ModelMetadataResponse)
        ready = "Can the model be called? 400 if not."
        yield get(f"{base}/ready", ready, answer=routes.model_ready, result=shapes.MODEL_READY)
        yield get(f"{base}/config", "Triton's configuration.", answer=routes.config, result=oip.ModelConfig)
        yield get(f"{base}/stats", "Counts and durations.", answer=routes.stats, result=oip.ModelStatisticsResponse)
        yield _oip(
            "POST",
            f"{base}/infer",
            "Calls the model.",
            tag="inference",
            answer=routes.infer,
            direct=routes.infer_directly,
            headers=_BINARY_HEADER,
            body=shapes.INFER_REQUEST,
            accepts=(JSON, OCTETS),
            result=shapes.INFER_RESPONSE,
            returns=(JSON, OCTETS),
        )


def _repository(routes: InferenceRoutes) -> Iterator[Operation]:
    post = partial(_oip, "POST", tag="repository")
    index, body = shapes.INDEX, shapes.INDEX_REQUEST
    yield post("/v2/repository/index", "Models and their states.", answer=routes.index, body=body, result=index)
    for verb, answer in (("load", routes.load), ("unload", routes.unload)):
        path = "/v2/repository/models/{model}/" + verb
        yield post(path, f"Triton's {verb}; answers when it is done.", answer=answer, body=shapes.REPOSITORY_REQUEST)
    for path in ("/index", "/models/{model}/load", "/models/{model}/unload"):
        refused = "Not supported: repositories have no names here."
        yield post("/v2/repository/{repository}" + path, refused, answer=routes.named_repository, status=501)


def _regions(routes: InferenceRoutes) -> Iterator[Operation]:
    """System shared memory; for this host only."""
    everything, one = "/v2/systemsharedmemory", "/v2/systemsharedmemory/region/{region}"
    region = partial(_oip, tag="shared memory")
    for place in (everything, one):
        yield region("GET", f"{place}/status", "Registered.", answer=routes.regions, result=shapes.REGIONS)
        yield region("POST", f"{place}/unregister", "Forgets; what is not there is fine.", answer=routes.unregister)
    body = shapes.of_fields(REGION)
    yield region("POST", f"{one}/register", "Lets tensors refer to it.", answer=routes.register, body=body)


def _unsupported(routes: InferenceRoutes) -> Iterator[Operation]:
    """Triton's routes that this server knows and does not implement."""
    refuse = partial(_oip, summary="Not implemented.", tag="not implemented", answer=routes.unsupported, status=501)
    for base in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        yield refuse("POST", f"{base}/generate")
        yield refuse("POST", f"{base}/generate_stream")
    for method in ("GET", "POST"):
        for path in ("/v2/models/{model}/trace/setting", "/v2/trace/setting", "/v2/logging"):
            yield refuse(method, path)
    for place in ("/v2/cudasharedmemory", "/v2/cudasharedmemory/region/{region}"):
        yield refuse("GET", f"{place}/status", answer=routes.cuda)
        yield refuse("POST", f"{place}/unregister", answer=routes.cuda)
    yield refuse("POST", "/v2/cudasharedmemory/region/{region}/register", answer=routes.cuda)


def _catalogue(routes: ManagementRoutes) -> Iterator[Operation]:
    of = partial(_api, tag="catalogue")
    models, model = "/api/v1/models", "/api/v1/models/{model}"
    versions, version, alias = f"{model}/versions", f"{model}/versions/{{version}}", f"{model}/aliases/{{alias}}"
    published = models_pb2.ModelVersion
    yield of(
        "GET",
        models,
        "Searches models.",
        answer=routes.list_models,
        query=manage.LIST_MODELS,
        result=models_pb2.ListModelsResponse,
    )
    yield of("GET", model, "One model.", answer=routes.get_model, result=models_pb2.Model)
    yield of(
        "GET",
        versions,
        "Its versions, newest first.",
        answer=routes.list_versions,
        query=manage.PAGE,
        result=models_pb2.ListVersionsResponse,
    )
    yield of("GET", version, "One version, by number or alias.", answer=routes.get_version, result=published)
    yield of(
        "POST",
        versions,
        "Publishes a version; its files are uploaded before.",
        answer=routes.publish,
        status=201,
        body=shapes.of_fields(manage.PUBLISH),
        result=published,
    )
    yield of("DELETE", version, "Deletes a version that nothing uses.", answer=routes.delete_version, status=204)
    yield of(
        "PUT",
        alias,
        "Points an alias at a version.",
        answer=routes.set_alias,
        body=shapes.of_fields(manage.SET_ALIAS),
        result=models_pb2.SetAliasResponse,
    )
    gone = "Removes an alias."
    yield of("DELETE", alias, gone, answer=routes.delete_alias, query=manage.DELETE_ALIAS, status=204)


def _artifacts(routes: ManagementRoutes, uploads: UploadRoutes) -> Iterator[Operation]:
    of, path = partial(_api, tag="artifacts"), "/api/v1/artifacts/{digest}"
    arrived = "How much of an artifact has arrived."
    yield of("GET", path, arrived, answer=routes.get_artifact, result=models_pb2.GetArtifactResponse)
    yield of(
        "PUT",
        path,
        "Uploads an artifact, whole or from where an upload broke off. 200 when it was there before.",
        answer=uploads.upload,
        timeout=UPLOAD_SECONDS,
        status=201,
        query=UPLOAD,
        headers=_RANGE_HEADER,
        body=shapes.OCTETS,
        accepts=(OCTETS,),
        result=models_pb2.UploadArtifactResponse,
    )
    every, late, result = "/api/v1/collections", "What was freed of late.", storage_pb2.ListCollectionsResponse
    yield of("GET", every, late, answer=routes.list_collections, query=manage.PAGE[:1], result=result)
    yield of(
        "POST",
        every,
        "Frees what nothing names and nobody has uploaded or asked for lately; says what that was.",
        answer=routes.collect,
        body=shapes.of_fields(manage.COLLECT),
        result=storage_pb2.Collection,
    )


def _builds(routes: BuildRoutes) -> Iterator[Operation]:
    of, one = partial(_api, tag="builds"), "/api/v1/builds/{build}"
    every, result = "/api/v1/builds", builds_pb2.ListBuildsResponse
    yield of("GET", every, "Builds, newest first.", answer=routes.list_builds, query=build.LIST_BUILDS, result=result)
    yield of(
        "POST",
        "/api/v1/models/{model}/builds",
        "Has a version built. Answers when that is recorded; the build's own page shows how far it is.",
        answer=routes.create,
        status=201,
        body=shapes.of_fields(build.BUILD),
        result=builds_pb2.Build,
    )
    yield of("GET", one, "One build.", answer=routes.get, result=builds_pb2.Build)
    yield of(
        "GET",
        f"{one}/events",
        "How a build goes on, as server-sent events, until it has ended.",
        answer=routes.events,
        timeout=EVENTS_SECONDS,
        query=build.EVENTS,
        headers=(Field("Last-Event-ID", INTEGER, "The last event's id, to go on from there; instead of offset."),),
        result=shapes.TEXT_STREAM,
        returns=(MEDIA_TYPE,),
        streams=True,
    )
    yield of("DELETE", one, "Ends a build that waits or runs.", answer=routes.cancel, result=builds_pb2.Build)
    who, query = "Who deployed what in spite of its gate, newest first.", build.LIST_BUILDS[:1]
    answer = builds_pb2.ListOverridesResponse
    yield of("GET", "/api/v1/overrides", who, answer=routes.overrides, query=query, result=answer)


def _deployments(routes: ManagementRoutes) -> Iterator[Operation]:
    of, every, one = partial(_api, tag="deployments"), "/api/v1/deployments", "/api/v1/deployments/{model}"
    wanted = models_pb2.ListDeploymentsResponse
    yield of("GET", every, "What should run.", answer=routes.list_deployments, result=wanted)
    yield of(
        "PUT",
        one,
        "Wants a version in so many replicas. Answers when that is recorded; /status shows how far it is.",
        answer=routes.deploy,
        body=shapes.of_fields(manage.DEPLOY),
        result=models_pb2.Deployment,
    )
    yield of("DELETE", one, "Wants the model gone.", answer=routes.undeploy, status=204)
    yield of("DELETE", f"{one}/versions/{{version}}", "Wants a version gone.", answer=routes.undeploy, status=204)
    cluster, status = partial(_api, tag="cluster"), cluster_pb2.ClusterStatus
    shown = "What runs where, and why something does not."
    yield cluster("GET", "/api/v1/status", shown, answer=routes.status, query=manage.STATUS, result=status)
    why, result = "Why a model runs where it does, and what would make it fit.", cluster_pb2.ExplainPlacementResponse
    yield cluster("GET", "/api/v1/explain/{model}", why, answer=routes.explain, query=manage.EXPLAIN, result=result)
    drain, empty = "/api/v1/workers/{worker}/drain", "Wants a worker empty; /status shows how far it is."
    yield cluster("PUT", drain, empty, answer=routes.drain, result=cluster_pb2.DrainWorkerResponse)
    yield cluster("DELETE", drain, "Lets it have replicas again.", answer=routes.undrain, status=204)


def _tenants(routes: ManagementRoutes) -> Iterator[Operation]:
    of, every, one = partial(_api, tag="tenants"), "/api/v1/tenants", "/api/v1/tenants/{tenant}"
    result, all_of_them = tenants_pb2.Tenant, tenants_pb2.ListTenantsResponse
    who = "Who may call what, and how much of it."
    yield of("GET", every, who, answer=routes.list_tenants, query=manage.PAGE, result=all_of_them)
    yield of("GET", one, "What one caller may do.", answer=routes.get_tenant, result=result)
    yield of(
        "PUT",
        one,
        "Says what a caller may do, in place of all that was said; `default`: each of whom nothing else is said.",
        answer=routes.set_tenant,
        body=shapes.of_fields(manage.SET_TENANT),
        result=result,
    )
    yield of("DELETE", one, "Forgets what was said of a caller.", answer=routes.delete_tenant, status=204)
