"""The document and the application come from one table; neither may know a route that the other does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
from google.protobuf.message import Message

from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2, models_pb2
from penstock.wire.call import Call, Done, Handler, Pending
from services.gateway.rest import openapi, shapes
from services.gateway.rest.bridge import Bridge
from services.gateway.rest.builds import BuildRoutes
from services.gateway.rest.inference import InferenceRoutes
from services.gateway.rest.management import Control, ManagementRoutes
from services.gateway.rest.messages import to_plain
from services.gateway.rest.operations import Operation
from services.gateway.rest.pages import Pages
from services.gateway.rest.table import inference_operations, management_operations
from services.gateway.rest.uploads import UploadRoutes


class Nothing:
    def handlers(self) -> Mapping[str, Handler]:
        return {}

    def direct(self, call: Call, done: Done) -> Pending | None:
        return None


CONTROL = cast(Control, None)


def operations() -> list[Operation]:
    return [
        *inference_operations(InferenceRoutes(Nothing(), lambda: None)),
        *management_operations(ManagementRoutes(CONTROL), UploadRoutes(CONTROL), BuildRoutes(CONTROL)),
        *Pages().operations(),
    ]


async def test_the_document_and_the_application_have_the_same_routes() -> None:
    bridge = Bridge(
        inference=Nothing(),
        control=CONTROL,
        ready=lambda: None,
        max_body_bytes=1,
        default_timeout=1.0,
        authenticate=lambda headers: "",
    )
    rows = bridge.router.paths.items()
    served = {(method, path) for path, methods in rows for method in methods if method != "HEAD"}
    paths = openapi.document(operations(), "1")["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert served == described
    assert len(served) == len(operations()), "two rows of the table are the same route"
    assert len(served) > 50


def test_every_reference_and_identifier_resolves() -> None:
    document = openapi.document(operations(), "1")
    schemas = document["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/components/schemas/") in schemas
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(document)
    identifiers = [entry["operationId"] for methods in document["paths"].values() for entry in methods.values()]
    assert len(identifiers) == len(set(identifiers))
    for path, methods in document["paths"].items():
        for entry in methods.values():
            named = {one["name"] for one in entry["parameters"] if one["in"] == "path"}
            assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}


def test_schemas_are_valid_json_schema() -> None:
    document = openapi.document(operations(), "1")
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_only_health_and_the_page_are_open() -> None:
    opened = {operation.path for operation in operations() if operation.open}
    assert opened == {"/v2/health/live", "/v2/health/ready", "/docs", "/docs/docs.js", "/docs/docs.css"}


def test_the_page_for_people_names_every_route() -> None:
    text = (Path(__file__).parents[4] / "docs" / "rest.md").read_text()
    for operation in operations():
        path = operation.path.replace("/versions/{version}", "") if operation.path.startswith("/v2") else operation.path
        if operation.status != 501:
            assert f"`{path}`" in text, f"docs/rest.md lacks {path}"


def version() -> models_pb2.ModelVersion:
    made = models_pb2.ModelVersion(name="m", version=2**60, aliases=["a"])
    made.artifacts["model"].digest = "sha256:" + "0" * 64
    made.manifest.preprocess.add().image.scale = 0.5
    made.manifest.lineage.metrics["accuracy"] = 0.97
    made.create_time.GetCurrentTime()
    return made


def status() -> cluster_pb2.ClusterStatus:
    made = cluster_pb2.ClusterStatus(leader="s1", term=7)
    made.versions.add(name="m", version=1).replicas.add(worker="w", state=cluster_pb2.REPLICA_STATE_FAILED)
    return made


@pytest.mark.parametrize("message", [version(), status(), oip.ModelConfig(name="m"), oip.ModelStatisticsResponse()])
def test_what_is_written_fits_its_schema(message: Message) -> None:
    collected = shapes.MessageSchemas()
    schema = {**collected.of(type(message)), "components": {"schemas": collected.components}}
    jsonschema.validate(to_plain(message), schema)
    spoilt = {**to_plain(message), next(iter(to_plain(message))): object}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoilt, schema)
