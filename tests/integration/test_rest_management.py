"""The management routes, over a unix socket: what is asked of which service, and what comes out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from penstock.errors import Conflict
from penstock.v1 import builds_pb2, cluster_pb2, manifest_pb2, models_pb2, storage_pb2, tenants_pb2
from tests.integration.rest_fakes import TOKEN, EchoInference, FakeControl
from tests.integration.rest_served import clients

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
async def http(control: FakeControl, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        clients(tmp_path, EchoInference(), control) as client,
        client(base_url="http://gateway/api/v1", headers=TOKEN) as http,
    ):
        yield http


MANIFEST = "name: digits\nformat: onnx\n"

# method, path, body, status, service, RPC, what the service is asked
CASES: list[tuple[str, str, Any, int, str, str, Message]] = [
    ("GET", "/models", None, 200, "ModelService", "ListModels", models_pb2.ListModelsRequest()),
    (
        "GET",
        "/models?query=hand+written&tag=team:a:b&tag=tier:1&page_size=5&page_token=t",
        None,
        200,
        "ModelService",
        "ListModels",
        models_pb2.ListModelsRequest(
            query="hand written", tags={"team": "a:b", "tier": "1"}, page_size=5, page_token="t"
        ),
    ),
    ("GET", "/models/digits", None, 200, "ModelService", "GetModel", models_pb2.GetModelRequest(name="digits")),
    (
        "GET",
        "/models/digits/versions?page_size=2",
        None,
        200,
        "ModelService",
        "ListVersions",
        models_pb2.ListVersionsRequest(name="digits", page_size=2),
    ),
    (
        "GET",
        "/models/digits/versions/champion",
        None,
        200,
        "ModelService",
        "GetVersion",
        models_pb2.GetVersionRequest(name="digits", version="champion"),
    ),
    (
        "POST",
        "/models/digits/versions",
        {"manifest": MANIFEST, "digests": {"model": DIGEST}, "request_key": "k", "version": 4},
        201,
        "ModelService",
        "PublishVersion",
        models_pb2.PublishVersionRequest(
            manifest=MANIFEST, digests={"model": DIGEST}, request_key="k", version=4, name="digits"
        ),
    ),
    (
        "DELETE",
        "/models/digits/versions/4",
        None,
        204,
        "ModelService",
        "DeleteVersion",
        models_pb2.DeleteVersionRequest(name="digits", version=4),
    ),
    (
        "PUT",
        "/models/digits/aliases/champion",
        {"version": 4, "expected_version": 0},
        200,
        "ModelService",
        "SetAlias",
        models_pb2.SetAliasRequest(name="digits", alias="champion", version=4, expected_version=0),
    ),
    (
        "PUT",
        "/models/digits/aliases/champion",
        {"version": 4},
        200,
        "ModelService",
        "SetAlias",
        models_pb2.SetAliasRequest(name="digits", alias="champion", version=4),
    ),
    (
        "DELETE",
        "/models/digits/aliases/champion?expected_version=4",
        None,
        204,
        "ModelService",
        "DeleteAlias",
        models_pb2.DeleteAliasRequest(name="digits", alias="champion", expected_version=4),
    ),
    (
        "GET",
        f"/artifacts/{DIGEST}",
        None,
        200,
        "ArtifactService",
        "GetArtifact",
        models_pb2.GetArtifactRequest(digest=DIGEST),
    ),
    (
        "GET",
        "/deployments",
        None,
        200,
        "DeploymentService",
        "ListDeployments",
        models_pb2.ListDeploymentsRequest(),
    ),
    (
        "PUT",
        "/deployments/digits",
        {"version": 3, "replicas": 2, "keep_others": True, "override_gate": "why"},
        200,
        "DeploymentService",
        "Deploy",
        models_pb2.DeployRequest(name="digits", version="3", replicas=2, keep_others=True, override_gate="why"),
    ),
    (
        "PUT",
        "/deployments/digits",
        {
            "scaling": {"max_replicas": 4, "queue_time": "50ms", "schedule": [{"begin": "08:00", "end": "18:00"}]},
            "placement": {"selector": {"zone": "a"}},
            "tenant": "acme",
        },
        200,
        "DeploymentService",
        "Deploy",
        models_pb2.DeployRequest(
            name="digits",
            scaling=models_pb2.Scaling(
                max_replicas=4,
                queue_time=Duration(nanos=50_000_000),
                schedule=[models_pb2.ScaleWindow(begin="08:00", end="18:00")],
            ),
            placement=manifest_pb2.Placement(selector={"zone": "a"}),
            tenant="acme",
        ),
    ),
    ("PUT", "/deployments/digits", None, 200, "DeploymentService", "Deploy", models_pb2.DeployRequest(name="digits")),
    (
        "DELETE",
        "/deployments/digits",
        None,
        204,
        "DeploymentService",
        "Undeploy",
        models_pb2.UndeployRequest(name="digits"),
    ),
    (
        "DELETE",
        "/deployments/digits/versions/3",
        None,
        204,
        "DeploymentService",
        "Undeploy",
        models_pb2.UndeployRequest(name="digits", version=3),
    ),
    (
        "POST",
        "/models/digits/builds",
        {
            "version": 3,
            "steps": [{"step": "quantise", "parameters": {"rows": 8}}, {"step": "compile", "id": "c"}],
            "targets": [{"architecture": "sm_89"}],
            "files": {"samples": DIGEST},
            "request_key": "k",
        },
        201,
        "BuildService",
        "CreateBuild",
        builds_pb2.CreateBuildRequest(
            name="digits",
            version="3",
            request_key="k",
            spec=manifest_pb2.BuildSpec(
                steps=[
                    manifest_pb2.BuildStep(step="quantise", parameters='{"rows": 8}'),
                    manifest_pb2.BuildStep(step="compile", id="c", parameters="{}"),
                ],
                targets=['{"architecture": "sm_89"}'],
                files={"samples": DIGEST},
            ),
        ),
    ),
    (
        "POST",
        "/models/digits/builds",
        None,
        201,
        "BuildService",
        "CreateBuild",
        builds_pb2.CreateBuildRequest(name="digits"),
    ),
    (
        "GET",
        "/builds?name=d&page_size=2",
        None,
        200,
        "BuildService",
        "ListBuilds",
        builds_pb2.ListBuildsRequest(name="d", page_size=2),
    ),
    ("GET", "/builds/ab", None, 200, "BuildService", "GetBuild", builds_pb2.GetBuildRequest(id="ab")),
    ("DELETE", "/builds/ab", None, 200, "BuildService", "CancelBuild", builds_pb2.CancelBuildRequest(id="ab")),
    (
        "POST",
        "/collections",
        {"dry_run": True},
        200,
        "StorageService",
        "CollectArtifacts",
        storage_pb2.CollectArtifactsRequest(dry_run=True),
    ),
    (
        "GET",
        "/collections?page_size=3",
        None,
        200,
        "StorageService",
        "ListCollections",
        storage_pb2.ListCollectionsRequest(page_size=3),
    ),
    (
        "GET",
        "/tenants?page_size=2&page_token=t",
        None,
        200,
        "TenantService",
        "ListTenants",
        tenants_pb2.ListTenantsRequest(page_size=2, page_token="t"),
    ),
    ("GET", "/tenants/team", None, 200, "TenantService", "GetTenant", tenants_pb2.GetTenantRequest(name="team")),
    (
        "PUT",
        "/tenants/team",
        {"models": ["fraud-*", "digits"], "rate": 2.5, "burst": 5, "concurrent": 3},
        200,
        "TenantService",
        "SetTenant",
        tenants_pb2.SetTenantRequest(
            tenant=tenants_pb2.Tenant(name="team", models=["fraud-*", "digits"], rate=2.5, burst=5, concurrent=3)
        ),
    ),
    (
        "PUT",
        "/tenants/default",
        {"models": [], "rate": 2},
        200,
        "TenantService",
        "SetTenant",
        tenants_pb2.SetTenantRequest(tenant=tenants_pb2.Tenant(name="default", rate=2)),
    ),
    (
        "DELETE",
        "/tenants/team",
        None,
        204,
        "TenantService",
        "DeleteTenant",
        tenants_pb2.DeleteTenantRequest(name="team"),
    ),
    ("GET", "/overrides?name=d", None, 200, "BuildService", "ListOverrides", builds_pb2.ListOverridesRequest(name="d")),
    ("GET", "/status?name=d", None, 200, "ClusterService", "GetStatus", cluster_pb2.GetStatusRequest(name="d")),
    (
        "PUT",
        "/workers/worker-1/drain",
        None,
        200,
        "ClusterService",
        "DrainWorker",
        cluster_pb2.DrainWorkerRequest(worker="worker-1"),
    ),
    (
        "DELETE",
        "/workers/worker-1/drain",
        None,
        204,
        "ClusterService",
        "UndrainWorker",
        cluster_pb2.UndrainWorkerRequest(worker="worker-1"),
    ),
    (
        "GET",
        "/explain/digits?version=2",
        None,
        200,
        "ClusterService",
        "ExplainPlacement",
        cluster_pb2.ExplainPlacementRequest(name="digits", version=2),
    ),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "service", "rpc", "request_"), CASES)
async def test_what_is_asked(
    http: httpx.AsyncClient,
    control: FakeControl,
    method: str,
    path: str,
    body: Any,
    status: int,
    service: str,
    rpc: str,
    request_: Message,
) -> None:
    answer = await http.request(method, path, json=body, headers={"x-request-id": "r1"})
    assert answer.status_code == status, answer.text
    assert (answer.content == b"") == (status == 204)
    asked_service, asked_rpc, asked, headers = control.asked[-1]
    assert (asked_service, asked_rpc, asked) == (f"penstock.v1.{service}", rpc, request_)
    assert headers == {"x-request-id": "r1", **TOKEN}


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", "/models?nope=1", None, "nope"),
        ("GET", "/models?page_size=x", None, "page_size"),
        ("GET", "/models?page_size=1001", None, "page_size"),
        ("GET", "/models?tag=novalue", None, "tag"),
        ("POST", "/models/digits/versions", {}, "manifest"),
        ("POST", "/models/digits/versions", {"manifest": MANIFEST, "digests": {"model": 1}}, "digests"),
        ("POST", "/models/digits/versions", {"manifest": MANIFEST, "extra": 1}, "extra"),
        ("POST", "/models/digits/versions", [], "body"),
        ("DELETE", "/models/digits/versions/champion", None, "version"),
        ("DELETE", "/models/digits/versions/0", None, "version"),
        ("PUT", "/models/digits/aliases/a", {}, "version"),
        ("PUT", "/models/digits/aliases/a", {"version": "4"}, "version"),
        ("PUT", "/deployments/digits", {"replicas": -1}, "replicas"),
        ("PUT", "/deployments/digits", {"replicas": 2**31}, "replicas"),
        ("PUT", "/deployments/digits", {"scaling": []}, "scaling"),
        ("PUT", "/deployments/digits", {"scaling": {"min": 1}}, "scaling.min"),
        ("PUT", "/deployments/digits", {"scaling": {"queue_time": 50}}, "scaling.queue_time"),
        ("PUT", "/deployments/digits", {"scaling": {"schedule": [{"days": "mon"}]}}, "scaling.schedule[0].days"),
        ("PUT", "/deployments/digits", {"placement": {"pinned": 1}}, "placement.pinned"),
        ("DELETE", "/deployments/digits/versions/x", None, "version"),
        ("PUT", "/tenants/team", {}, "models"),
        ("PUT", "/tenants/team", {"models": "fraud-*"}, "models"),
        ("PUT", "/tenants/team", {"models": [1]}, "models"),
        ("PUT", "/tenants/team", {"models": [], "rate": "2"}, "rate"),
        ("PUT", "/tenants/team", {"models": [], "rate": -1}, "rate"),
        ("PUT", "/tenants/team", {"models": [], "rate": True}, "rate"),
        ("PUT", "/tenants/team", {"models": [], "concurrent": 2**31}, "concurrent"),
        ("PUT", "/tenants/team", {"models": [], "who": "me"}, "who"),
        ("POST", "/models/digits/builds", {"steps": [{}]}, "steps[0]"),
        ("POST", "/models/digits/builds", {"steps": ["quantise"]}, "steps"),
        ("POST", "/models/digits/builds", {"steps": [{"step": "a", "inputs": {"b": 1}}]}, "steps[0]"),
    ],
)
async def test_what_is_refused_here(
    http: httpx.AsyncClient, control: FakeControl, method: str, path: str, body: Any, field: str
) -> None:
    answer = await http.request(method, path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field
    assert not control.asked


async def test_bodies_are_bounded(http: httpx.AsyncClient) -> None:
    deep = b'{"digests":' + b"[" * 40 + b"]" * 40 + b"}"
    answer = await http.post("/models/digits/versions", content=deep)
    assert (answer.status_code, "deeper than 32" in answer.text) == (400, True)
    answer = await http.post("/models/digits/versions", content=bytes((4 << 20) + 1))
    assert answer.json()["error"]["code"] == "TOO_LARGE"


async def test_what_comes_out(http: httpx.AsyncClient, control: FakeControl) -> None:
    version = models_pb2.ModelVersion(name="digits", version=3, manifest_digest=DIGEST, aliases=["champion"])
    version.manifest.tags["team"] = "a"
    version.create_time.FromJsonString("2026-01-02T03:04:05Z")
    control.answers["GetVersion"] = models_pb2.GetVersionResponse(version=version)
    shown = (await http.get("/models/digits/versions/3")).json()
    assert (shown["version"], shown["aliases"], shown["deployed"]) == (3, ["champion"], False)
    assert shown["manifest"]["tags"] == {"team": "a"}
    assert shown["create_time"] == "2026-01-02T03:04:05Z"
    control.answers["SetAlias"] = Conflict("the alias points at 2", field="expected_version")
    answer = await http.put("/models/digits/aliases/a", json={"version": 3, "expected_version": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "CONFLICT")


async def test_upload(http: httpx.AsyncClient, control: FakeControl) -> None:
    content = bytes(range(256)) * (6 << 12)  # beyond the body limit, which is not for artifacts
    assert len(content) > 4 << 20
    answer = await http.put(f"/artifacts/{DIGEST}", content=content)
    assert answer.status_code == 201, answer.text
    assert answer.json() == {"artifact": {"digest": DIGEST, "size_bytes": len(content)}, "existed": False}
    header, received = control.uploads[-1]
    assert (header.digest, header.size_bytes, header.offset) == (DIGEST, len(content), 0)
    assert received == content


async def test_upload_goes_on(http: httpx.AsyncClient, control: FakeControl) -> None:
    await http.put(f"/artifacts/{DIGEST}", content=b"defg", headers={"content-range": "bytes 3-6/7"})
    await http.put(f"/artifacts/{DIGEST}?offset=3", content=b"defg")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"de"
        yield b"fg"

    await http.put(f"/artifacts/{DIGEST}?offset=3&size=7", content=chunks())
    assert [(header.offset, header.size_bytes, data) for header, data in control.uploads] == [(3, 7, b"defg")] * 3


@pytest.mark.parametrize(("path", "status"), [(f"/artifacts/{DIGEST}?size=9", 400), ("/artifacts/md5:1", 400)])
async def test_uploads_that_are_refused(http: httpx.AsyncClient, control: FakeControl, path: str, status: int) -> None:
    assert (await http.put(path, content=b"defg")).status_code == status
    assert not control.uploads


async def test_a_chunked_upload_is_as_long_as_announced(http: httpx.AsyncClient, control: FakeControl) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"abcd"

    for size in (3, 5):
        answer = await http.put(f"/artifacts/{DIGEST}?size={size}", content=chunks())
        assert (answer.status_code, answer.json()["error"]["field"]) == (400, "size")
    assert not control.uploads
    control.refuse_uploads = Conflict("go on at 2", field="offset")
    assert (await http.put(f"/artifacts/{DIGEST}", content=b"abcd")).status_code == 409
    assert (
        await http.put(f"/artifacts/{DIGEST}", content=b"a", headers={"content-encoding": "gzip"})
    ).status_code == 501
