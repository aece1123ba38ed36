"""The bridge's routes, over a unix socket: every route, every status, what goes in and what comes out."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest

from penstock import errors
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import Call
from tests.integration.rest_fakes import TOKEN, EchoInference, FakeControl
from tests.integration.rest_served import SMALL_LIMIT, clients

LIMIT = SMALL_LIMIT
X: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[0.5, -1]]}
INFER = "/v2/models/echo/infer"


@dataclass
class Bridge:
    http: httpx.AsyncClient
    inference: EchoInference
    control: FakeControl
    not_ready: list[str]
    socket: Path

    def last(self) -> Call:
        return self.inference.calls[-1]


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    inference, control = EchoInference(), FakeControl()
    not_ready: list[str] = []
    headers = {**TOKEN, "accept-encoding": "identity"}
    async with (
        clients(tmp_path, inference, control, lambda: not_ready[0] if not_ready else None) as client,
        client(base_url="http://gateway", headers=headers) as http,
    ):
        yield Bridge(http, inference, control, not_ready, tmp_path / "rest")


async def test_health(bridge: Bridge) -> None:
    assert (await bridge.http.get("/v2/health/live")).json() == {"live": True}
    assert (await bridge.http.get("/v2/health/ready")).json() == {"ready": True}
    bridge.not_ready.append("the routing table has not been read")
    answer = await bridge.http.get("/v2/health/ready")
    assert answer.status_code == 400
    assert "routing table" in answer.json()["error"]
    assert (await bridge.http.get("/v2/health/live")).status_code == 200


async def test_metadata(bridge: Bridge) -> None:
    expected = {"name": "penstock", "version": "1", "extensions": ["binary_tensor_data"]}
    assert (await bridge.http.get("/v2")).json() == expected
    assert (await bridge.http.get("/v2/")).json() == expected
    model = {
        "name": "echo",
        "versions": ["1"],
        "platform": "echo",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [],
    }
    for path in ("/v2/models/echo", "/v2/models/echo/versions/1", "/v2/models/echo/versions/champion"):
        assert (await bridge.http.get(path)).json() == model
    assert (await bridge.http.get("/v2/models/echo/ready")).json() == {"name": "echo", "ready": True}
    answer = await bridge.http.get("/v2/models/other/versions/2/ready")
    assert (answer.status_code, answer.json()) == (400, {"error": "Model version not ready"})
    assert (await bridge.http.get("/v2/models/other")).status_code == 404


async def test_config_and_statistics(bridge: Bridge) -> None:
    config = (await bridge.http.get("/v2/models/echo/config")).json()
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}]
    assert config["max_batch_size"] == 8
    stats = (await bridge.http.get("/v2/models/echo/versions/3/stats")).json()["model_stats"]
    assert (stats[0]["name"], stats[0]["version"]) == ("echo", "3")
    assert stats[0]["inference_count"] == 2**60
    assert stats[0]["inference_stats"]["success"] == {"count": 2, "ns": 0}
    assert (await bridge.http.get("/v2/models/stats")).json()["model_stats"][0]["name"] == "every"


async def test_repository(bridge: Bridge) -> None:
    index = await bridge.http.post("/v2/repository/index")
    assert index.json() == [{"name": "echo", "version": "1", "state": "READY", "reason": ""}, {"name": "never"}]
    assert len((await bridge.http.post("/v2/repository/index", json={"ready": True})).json()) == 1
    assert (await bridge.http.post("/v2/repository/index", json={"ready": 1})).status_code == 400
    encoded = base64.b64encode(b"\0file").decode()
    body = {"parameters": {"config": "{}", "file:1/model.onnx": encoded, "n": 3}}
    answer = await bridge.http.post("/v2/repository/models/echo/load", json=body)
    assert (answer.status_code, answer.content) == (200, b"")
    parameters = oip.RepositoryModelLoadRequest.FromString(bridge.last().payload).parameters
    assert parameters["file:1/model.onnx"].bytes_param == b"\0file"
    assert (parameters["config"].string_param, parameters["n"].int64_param) == ("{}", 3)
    body = {"parameters": {"unload_dependents": True}}
    assert (await bridge.http.post("/v2/repository/models/echo/unload", json=body)).status_code == 200
    assert oip.RepositoryModelUnloadRequest.FromString(bridge.last().payload).parameters["unload_dependents"].bool_param
    assert (await bridge.http.post("/v2/repository/models/other/load")).status_code == 404
    wrong: Any
    for wrong in ({"parameters": {"file:x": "%"}}, {"parameters": {"a": [1]}}, {"parameters": 3}, []):
        assert (await bridge.http.post("/v2/repository/models/echo/load", json=wrong)).status_code == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/mine/index"),
        ("POST", "/v2/repository/mine/models/echo/load"),
        ("POST", "/v2/repository/mine/models/echo/unload"),
        ("POST", "/v2/models/echo/generate"),
        ("POST", "/v2/models/echo/versions/1/generate_stream"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/trace/setting"),
        ("GET", "/v2/models/echo/trace/setting"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("POST", "/v2/cudasharedmemory/region/r/register"),
    ],
)
async def test_what_is_not_implemented_says_so(bridge: Bridge, method: str, path: str) -> None:
    answer = await bridge.http.request(method, path)
    assert answer.status_code == 501
    assert isinstance(answer.json()["error"], str)


async def test_unknown_paths_and_methods(bridge: Bridge) -> None:
    for path in ("/v2/nope", "/", "/v2/models/echo/infer/", "/v2/models/a%2Fb", "/v2/models//infer", "/docs/x"):
        answer = await bridge.http.get(path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"]), path
    answer = await bridge.http.get(INFER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert isinstance(answer.json()["error"], str)
    answer = await bridge.http.post("/api/v1/artifacts/x")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, PUT")
    assert answer.json()["error"]["code"] == "METHOD_NOT_ALLOWED"
    assert (await bridge.http.get("/api/v1/nope")).json()["error"]["code"] == "NOT_FOUND"


async def test_infer_as_json(bridge: Bridge) -> None:
    body = {"id": "seven", "inputs": [X], "parameters": {"priority": 1}, "extra": True}
    answer = await bridge.http.post(INFER, json=body)
    assert answer.json() == {
        "model_name": "echo",
        "model_version": "1",
        "id": "seven",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1.0]}],
    }
    assert answer.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in answer.headers
    assert answer.headers["penstock-worker"] == "w1"
    assert answer.headers["penstock-batch-size"] == "3"
    assert answer.headers["penstock-queue-us"] == "17"
    assert "secret" not in answer.headers
    request = oip.ModelInferRequest.FromString(bridge.last().payload)
    assert request.parameters["priority"].int64_param == 1
    assert bridge.last().caller == "tester"


async def test_infer_of_a_version(bridge: Bridge) -> None:
    for version in ("3", "champion"):
        answer = await bridge.http.post(f"/v2/models/echo/versions/{version}/infer", json={"inputs": [X]})
        assert answer.json()["model_version"] == version


async def test_infer_as_binary(bridge: Bridge) -> None:
    raw = np.arange(6, dtype="<f2").tobytes()
    tensor = {"name": "h", "shape": [6], "datatype": "FP16", "parameters": {"binary_data_size": len(raw)}}
    wanted = [{"name": "h", "parameters": {"binary_data": True}}, {"name": "x"}]
    text = json.dumps({"inputs": [X, tensor], "outputs": wanted}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    answer = await bridge.http.post(INFER, content=text + raw, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers["inference-header-content-length"])
    outputs = {one["name"]: one for one in json.loads(answer.content[:size])["outputs"]}
    assert outputs["h"]["parameters"] == {"binary_data_size": len(raw)}
    assert outputs["x"]["data"] == [0.5, -1]
    assert answer.content[size:] == raw


async def test_infer_raw(bridge: Bridge) -> None:
    raw = np.array([1, 2, 3], "<f4").tobytes()
    answer = await bridge.http.post(INFER, content=raw, headers={"inference-header-content-length": "0"})
    size = int(answer.headers["inference-header-content-length"])
    output = json.loads(answer.content[:size])["outputs"][0]
    assert (output["name"], output["shape"]) == ("x", [1, 3])
    assert answer.content[size:] == raw
    answer = await bridge.http.post(INFER, content=raw[:-1], headers={"inference-header-content-length": "0"})
    assert answer.status_code == 400


@pytest.mark.parametrize("value", ["-1", "x", "9999"])
async def test_a_wrong_header_length(bridge: Bridge, value: str) -> None:
    headers = {"inference-header-content-length": value}
    answer = await bridge.http.post(INFER, json={"inputs": [X]}, headers=headers)
    assert answer.status_code == 400
    assert "Inference-Header-Content-Length" in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"inputs":[NaN]}', b"[" * 200_000])
async def test_bad_bodies(bridge: Bridge, body: bytes) -> None:
    answer = await bridge.http.post(INFER, content=body)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert not bridge.inference.calls


async def test_an_output_that_json_cannot_say(bridge: Bridge) -> None:
    raw = np.array([np.nan], "<f4").tobytes()
    tensor = {"name": "n", "shape": [1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    answer = await bridge.http.post(INFER, content=text + raw, headers=headers)
    assert answer.status_code == 400
    assert "binary_data" in answer.json()["error"]


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_both_ways(bridge: Bridge, coding: str, compress: Any) -> None:
    raw = np.arange(4000, dtype="<f4").tobytes()
    tensor = {"name": "x", "shape": [4000], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {
        "inference-header-content-length": str(len(text)),
        "content-encoding": coding,
        "accept-encoding": coding,
    }
    answer = await bridge.http.post(INFER, content=compress(text + raw), headers=headers)
    assert answer.headers["content-encoding"] == coding
    assert answer.headers["vary"] == "accept-encoding"
    size = int(answer.headers["inference-header-content-length"])
    assert answer.content[size:] == raw


@pytest.mark.parametrize("binary", [True, False])
async def test_large_answers_are_compressed_too(bridge: Bridge, binary: bool) -> None:
    raw = np.arange(100_000, dtype="<f4").tobytes()
    tensor = {"name": "x", "shape": [100_000], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    headers = {"inference-header-content-length": str(len(text)), "accept-encoding": "gzip"}
    answer = await bridge.http.post(INFER, content=text + raw, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    if binary:
        assert answer.content[int(answer.headers["inference-header-content-length"]) :] == raw
    else:
        assert np.array(answer.json()["outputs"][0]["data"], "<f4").tobytes() == raw


async def test_compressed_limits(bridge: Bridge) -> None:
    gzipped = {"content-encoding": "gzip"}
    answer = await bridge.http.post(INFER, content=gzip.compress(bytes(64 << 20)), headers=gzipped)
    assert answer.status_code == 413
    answer = await bridge.http.post(INFER, content=b"no gzip", headers=gzipped)
    assert answer.status_code == 400
    answer = await bridge.http.post(INFER, content=b"x", headers={"content-encoding": "br"})
    assert answer.status_code == 400
    assert not bridge.inference.calls


async def test_the_body_limit(bridge: Bridge) -> None:
    answer = await bridge.http.post(INFER, content=bytes(LIMIT + 1))
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert str(LIMIT) in answer.json()["error"]

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(LIMIT // 1024 + 1):
            yield bytes(1024)

    answer = await bridge.http.post(INFER, content=chunks())
    assert answer.status_code == 413


@pytest.mark.parametrize("kind", errors.ALL, ids=lambda kind: kind.code.name)
async def test_every_error(bridge: Bridge, kind: type[errors.PenstockError]) -> None:
    model = "fail." + kind.code.name.lower().replace("_", "-")
    answer = await bridge.http.post(f"/v2/models/{model}/infer", json={"inputs": [X]})
    assert answer.status_code == {409: 400, 499: 400}.get(kind.code.http, kind.code.http)
    assert answer.json() == {"error": "what is wrong"}
    bridge.control.answers["GetStatus"] = kind("what is wrong", field="f", detail="/secret/path")
    answer = await bridge.http.get("/api/v1/status", headers={"x-request-id": "abc"})
    assert answer.status_code == kind.code.http
    assert answer.json()["error"] == {
        "code": kind.code.name,
        "message": "what is wrong",
        "field": "f",
        "retryable": kind.code.retryable,
        "request_id": "abc",
    }
    assert "secret" not in answer.text


async def test_a_crash_shows_nothing_but_its_request_id(bridge: Bridge) -> None:
    answer = await bridge.http.post("/v2/models/crash/infer", json={"inputs": [X]})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]


async def test_deadlines(bridge: Bridge) -> None:
    loop = asyncio.get_running_loop()
    await bridge.http.post(INFER, json={"inputs": [X]}, headers={"penstock-timeout-ms": "60000"})
    assert 50 < bridge.last().deadline - loop.time() < 60
    await bridge.http.post(INFER, json={"inputs": [X]})
    assert 4 < bridge.last().deadline - loop.time() < 5
    answer = await bridge.http.post(
        "/v2/models/slow/infer", json={"inputs": [X]}, headers={"penstock-timeout-ms": "50"}
    )
    assert answer.status_code == 504
    assert bridge.inference.cancelled.is_set()
    for wrong in ("0", "-1", "x", "1.5", "9999999999"):
        answer = await bridge.http.post(INFER, json={"inputs": [X]}, headers={"penstock-timeout-ms": wrong})
        assert answer.status_code == 400


async def test_headers_that_go_on(bridge: Bridge) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    sent = {"x-request-id": "abc-1", "traceparent": trace, "penstock-version": "9", "x-other": "1"}
    answer = await bridge.http.post(INFER, json={"inputs": [X]}, headers=sent)
    assert dict(bridge.last().headers) == {"traceparent": trace}
    assert bridge.last().request_id == "abc-1"
    assert answer.headers["x-request-id"] == "abc-1"
    sent = {"x-request-id": "a b", "traceparent": "nonsense"}
    answer = await bridge.http.post(INFER, json={"inputs": [X]}, headers=sent)
    made = bridge.last().request_id
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert answer.headers["x-request-id"] == made
    assert not bridge.last().headers


def every_route() -> Iterator[tuple[str, str]]:
    from tests.unit.gateway.rest.test_openapi import operations

    for operation in operations():
        if not operation.open:
            yield operation.method, re.sub(r"\{\w+\}", "x", operation.path)


async def test_every_route_asks_who_calls_before_it_reads(bridge: Bridge) -> None:
    bridge.http.headers.pop("authorization")
    seen = 0
    for method, path in every_route():
        answer = await bridge.http.request(method, path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"].startswith("Bearer")
        seen += 1
    assert seen > 50
    # A caller who waits to be told to go on is not told.
    reader, writer = await asyncio.open_unix_connection(bridge.socket)
    writer.write(b"POST %s HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n" % INFER.encode())
    async with asyncio.timeout(30):
        assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
    writer.close()
    for path in ("/v2/health/live", "/v2/health/ready", "/docs", "/docs/docs.js", "/docs/docs.css"):
        assert (await bridge.http.get(path)).status_code == 200


async def test_web_pages_of_others_change_nothing(bridge: Bridge) -> None:
    foreign = {"origin": "http://evil.example"}
    assert (await bridge.http.post(INFER, json={"inputs": [X]}, headers=foreign)).status_code == 403
    assert (await bridge.http.delete("/api/v1/deployments/echo", headers={"origin": "null"})).status_code == 403
    assert (
        await bridge.http.post(INFER, json={"inputs": [X]}, headers={"origin": "http://gateway"})
    ).status_code == 200
    assert (await bridge.http.get("/v2", headers=foreign)).status_code == 200


async def test_documentation(bridge: Bridge) -> None:
    document = (await bridge.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    page = await bridge.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert path.startswith("/"), "the page loads nothing from elsewhere"
        assert (await bridge.http.get(path)).status_code == 200
    for answer in (page, await bridge.http.get("/v2"), await bridge.http.get("/nope")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_answers_fit_the_document(bridge: Bridge) -> None:
    document = (await bridge.http.get("/openapi.json")).json()
    for path in ("/v2", "/v2/models/echo/config", "/v2/models/stats", "/v2/health/live", "/api/v1/status"):
        template = path.replace("/echo/", "/{model}/")
        entry = document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        schema = {**entry, "components": document["components"]}
        jsonschema.validate((await bridge.http.get(path)).json(), schema)
    answer = await bridge.http.post(INFER, json={"inputs": [X]})
    entry = document["paths"]["/v2/models/{model}/infer"]["post"]["responses"]["200"]
    jsonschema.validate(answer.json(), entry["content"]["application/json"]["schema"])
