"""Bad input through the real gateway: the right code, a text that helps, and never a path, a stack trace or an inner
name. Each case is tried over gRPC and over REST where both can express it."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from deploy.local.suite import Suite
from penstock import Client, errors
from penstock.oip import inference_pb2 as oip
from penstock.oip import inference_pb2_grpc as oip_rpc
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc
from tests.e2e.conftest import grpc_address, rest_address, serve
from tests.harness import models

LEAK = re.compile(
    r"Traceback|File \"|/tmp/|/work/|/home/|\.py\b|site-packages|0x[0-9a-f]{6,}|sqlite|etcd|asyncio", re.IGNORECASE
)
ROW = np.ones((1, 16), np.float32).tobytes()


@pytest.fixture(scope="module")
def channel(suite: Suite) -> Iterator[grpc.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(grpc_address(suite), options=options) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    return oip_rpc.GRPCInferenceServiceStub(channel)


def infer_request(model: str, **changes: Any) -> oip.ModelInferRequest:
    """A right request for add1, then what a case changes: name, datatype, shape, raw, typed, version."""
    request = oip.ModelInferRequest(model_name=model, model_version=changes.get("version", ""))
    tensor = request.inputs.add(
        name=changes.get("name", "x"), datatype=changes.get("datatype", "FP32"), shape=changes.get("shape", [1, 16])
    )
    if "typed" in changes:
        tensor.contents.fp32_contents.extend(changes["typed"])
    if changes.get("raw", ROW) is not None:
        request.raw_input_contents.append(changes.get("raw", ROW))
    if "output" in changes:
        request.outputs.add(name=changes["output"])
    return request


def failure(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call that must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    assert not LEAK.search(error.details()), error.details()
    return error.code(), error.details()


INVALID = grpc.StatusCode.INVALID_ARGUMENT
GRPC_CASES: dict[str, tuple[dict[str, Any], grpc.StatusCode, str]] = {
    "unknown input": ({"name": "z"}, INVALID, "x"),
    "wrong datatype": ({"datatype": "INT32"}, INVALID, "FP32"),
    "no such datatype": ({"datatype": "FLOAT"}, INVALID, "FP32"),
    "wrong shape": ({"shape": [1, 15], "raw": ROW[:60]}, INVALID, "16"),
    "wrong rank": ({"shape": [16]}, INVALID, "16"),
    "negative dimension": ({"shape": [-1, 16]}, INVALID, "-1"),
    "shape that overflows": ({"shape": [2**62, 16]}, INVALID, ""),
    "too few bytes": ({"raw": ROW[:-1]}, INVALID, "64"),
    "too many bytes": ({"raw": ROW + b"\0"}, INVALID, "64"),
    "no data": ({"raw": None}, INVALID, "x"),
    "raw and typed": ({"typed": [1.0] * 16}, INVALID, "raw"),
    "more rows than the batch": ({"shape": [33, 16], "raw": ROW * 33}, INVALID, "32"),
    "unknown output": ({"output": "q"}, INVALID, "y"),
    "version that is no version": ({"version": "-1"}, INVALID, "version"),
    "unknown alias": ({"version": "nightly"}, INVALID, "nightly"),
    "unknown version": ({"version": "77"}, grpc.StatusCode.NOT_FOUND, "77"),
}


@pytest.mark.parametrize("case", GRPC_CASES)
def test_grpc_says_what_is_wrong(stub: Any, add1: str, case: str) -> None:
    changes, code, word = GRPC_CASES[case]
    found, text = failure(lambda: stub.ModelInfer(infer_request(add1, **changes), timeout=60))
    assert found is code, text
    assert word in text


@pytest.mark.parametrize("name", ["nobody", "", "../../etc/passwd", "a/b", "a..b", "A", "x" * 65, "add1\x00", "ä"])
def test_a_model_that_is_not_there_or_cannot_be(stub: Any, add1: str, name: str) -> None:
    code, _ = failure(lambda: stub.ModelInfer(infer_request(name), timeout=60))
    assert code in (grpc.StatusCode.NOT_FOUND, INVALID)


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    raw: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    code, _ = failure(lambda: raw(b"\xff\xff\xff\xff", timeout=60))
    assert code is INVALID


def test_the_limit_of_a_message_is_64_mebibytes(stub: Any, anysize: str) -> None:
    limit = 64 << 20
    fits = (limit - 4096) // 4
    request = infer_request(anysize, shape=[fits], raw=np.zeros(fits, np.float32).tobytes())
    assert len(stub.ModelInfer(request, timeout=60).raw_output_contents[0]) == fits * 4
    above = limit // 4 + 64
    request = infer_request(anysize, shape=[above], raw=np.zeros(above, np.float32).tobytes())
    code, _ = failure(lambda: stub.ModelInfer(request, timeout=60))
    assert code in (INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED)


def post(suite: Suite, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Status and parsed answer of a POST; asserts that no text leaks."""
    request = urllib.request.Request(f"http://{rest_address(suite)}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        assert not LEAK.search(text), text
        return error.code, json.loads(text)


def json_request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [1.0] * 16} | changes
    return {"inputs": [tensor]}


REST_CASES: dict[str, tuple[bytes, int, str]] = {
    "broken JSON": (b'{"inputs": [', 400, ""),
    "not an object": (b"[]", 400, ""),
    "no inputs": (b"{}", 400, "inputs"),
    "deep nesting": (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, ""),
    "unknown input": (json.dumps(json_request(name="z")).encode(), 400, "x"),
    "wrong datatype": (json.dumps(json_request(datatype="INT32", data=[1] * 16)).encode(), 400, "FP32"),
    "too few values": (json.dumps(json_request(data=[1.0] * 15)).encode(), 400, "16"),
    "words for numbers": (json.dumps(json_request(data=["one"] * 16)).encode(), 400, ""),
    "FP16 as JSON": (json.dumps(json_request(datatype="FP16")).encode(), 400, "binary"),
    "negative dimension": (json.dumps(json_request(shape=[-1, 16])).encode(), 400, ""),
}


@pytest.mark.parametrize("case", REST_CASES)
def test_rest_says_what_is_wrong(suite: Suite, add1: str, case: str) -> None:
    body, status, word = REST_CASES[case]
    found, answer = post(suite, f"/v2/models/{add1}/infer", body, **{"Content-Type": "application/json"})
    assert found == status, answer
    assert isinstance(answer["error"], str)
    assert word in answer["error"]


@pytest.mark.parametrize("size", ["-1", "99999999", "x"])
def test_rest_refuses_a_binary_header_that_lies(suite: Suite, add1: str, size: str) -> None:
    body = json.dumps(json_request(parameters={"binary_data_size": 64})).encode() + ROW
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": size}
    assert post(suite, f"/v2/models/{add1}/infer", body, **headers)[0] == 400


def test_rest_refuses_a_body_over_64_mebibytes_without_reading_it(suite: Suite, add1: str) -> None:
    host, _, port = rest_address(suite).partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        head = f"POST /v2/models/{add1}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {(64 << 20) + 1}\r\n\r\n"
        raw.sendall(head.encode() + b"{")  # the rest is never sent
        assert b" 413 " in raw.recv(4096)


@pytest.mark.parametrize("name", ["nobody", "..%2f..%2fetc%2fpasswd", "%2e%2e", "a%00b", "A"])
def test_rest_does_not_find_what_is_not_there(suite: Suite, add1: str, name: str) -> None:
    status, answer = post(suite, f"/v2/models/{name}/infer", json.dumps(json_request()).encode())
    assert status in (400, 404), answer


def test_rest_wrong_method_and_path(suite: Suite) -> None:
    assert post(suite, "/v2/health/live", b"")[0] == 405
    assert post(suite, "/v2/nothing", b"")[0] == 404


def test_an_image_that_is_none_fails_alone(client: Client, digits: str, png: bytes) -> None:
    with pytest.raises(errors.InvalidArgument, match="image") as raised:
        client.infer(digits, {"image": b"this is not a picture"})
    assert not LEAK.search(str(raised.value))
    with pytest.raises(errors.InvalidArgument):
        client.infer(digits, {"image": png[: len(png) // 2]})
    assert client.infer(digits, {"image": png})["probabilities"].shape == (1, 10)


# Publishing.


@pytest.mark.parametrize(
    ("line", "field", "word"),
    [
        ("name: ../up", "name", "a-z"),
        ("name: a/b", "name", "a-z"),
        ("format: pickle", "format", "onnx"),
        ("batching: {max_batch_size: -1}", "batching.max_batch_size", ""),
        ("files: {model: ../model.onnx}", "files.model", ""),
        ("inputs: [{name: x, datatype: FLOAT32, shape: [16]}]", "inputs[0].datatype", "FP32"),
        ("colour: blue", "colour", ""),
    ],
)
def test_a_bad_manifest_names_the_field(channel: grpc.Channel, folder: Path, line: str, field: str, word: str) -> None:
    text = (models.add_one(folder / "manifest", "manifest") / "model.yaml").read_text()
    key = line.split(":")[0]
    kept: list[str] = []
    skipping = False
    for each in text.splitlines():
        if not each.startswith((" ", "-")):
            skipping = each.startswith(f"{key}:")
        if not skipping:
            kept.append(each)
    request = pb.PublishVersionRequest(manifest="\n".join([*kept, line]), digests={"model": "sha256:" + "0" * 64})
    code, text = failure(lambda: rpc.ModelServiceStub(channel).PublishVersion(request, timeout=60))
    assert code is INVALID
    assert field in text
    assert word in text


def test_a_version_number_is_taken_once(client: Client, folder: Path) -> None:
    path = models.add_one(folder / "taken", "taken")
    client.publish(path, version=3)
    models.add_one(folder / "taken", "taken", add=2.0)
    with pytest.raises(errors.AlreadyExists, match="3"):
        client.publish(path, version=3)


def test_an_upload_that_lies_or_ends_early_leaves_nothing(channel: grpc.Channel) -> None:
    artifacts = rpc.ArtifactServiceStub(channel)
    wrong = "sha256:" + "a" * 64
    content = b"x" * 100_000

    def parts(size: int) -> Iterator[pb.UploadArtifactRequest]:
        yield pb.UploadArtifactRequest(header=pb.UploadHeader(digest=wrong, size_bytes=size))
        yield pb.UploadArtifactRequest(data=content)

    code, text = failure(lambda: artifacts.UploadArtifact(parts(len(content)), timeout=60))
    assert code is INVALID
    assert "sha256" in text or "digest" in text
    failure(lambda: artifacts.UploadArtifact(parts(len(content) + 1), timeout=60))
    assert not artifacts.GetArtifact(pb.GetArtifactRequest(digest=wrong), timeout=60).complete
    code, _ = failure(lambda: list(artifacts.DownloadArtifact(pb.DownloadArtifactRequest(digest=wrong), timeout=60)))
    assert code is grpc.StatusCode.NOT_FOUND


def test_an_engine_that_cannot_load_says_so(client: Client, add1: str, folder: Path) -> None:
    version = client.publish(models.unloadable(folder / "unloadable"))
    client.deploy("unloadable", version.version)
    with pytest.raises(errors.Unavailable) as raised:
        client.deploy("unloadable", version.version, wait=120)
    assert "NoSuchOperator" in str(raised.value)
    assert not LEAK.search(str(raised.value)), str(raised.value)
    with pytest.raises(errors.Unavailable):
        client.infer("unloadable", {"x": np.ones((1, 16), np.float32)}, retries=0)
    # The others do not notice.
    assert (client.infer(add1, {"x": np.zeros((1, 16), np.float32)})["y"] == 1).all()
    client.undeploy("unloadable", wait=120)


def test_what_does_not_fit_says_why(client: Client, folder: Path) -> None:
    path = models.add_one(folder / "giant", "giant")
    manifest = path / "model.yaml"
    manifest.write_text(manifest.read_text().replace(str(64 << 20), str(1 << 50)))
    serve_without_waiting(client, path)
    status = next(each for each in client.status("giant").versions)
    assert status.ready == 0
    assert "worker-1" in status.unplaced_reason
    assert "TiB" in status.unplaced_reason or "GiB" in status.unplaced_reason
    client.undeploy("giant", wait=120)


def serve_without_waiting(client: Client, path: Path) -> None:
    version = client.publish(path)
    client.deploy(version.name, version.version)
    for status in client.watch_status(version.name, timeout=60):
        if any(each.unplaced_reason for each in status.versions):
            return


@pytest.fixture(scope="module")
def digits(client: Client) -> str:
    """The example's digits, built if need be."""
    from deploy.local.suite import ROOT
    from examples.digits.train import build

    build(ROOT / "build" / "models" / "digits")
    return serve(client, ROOT / "build" / "models" / "digits")


@pytest.fixture(scope="module")
def png(digits: str) -> bytes:
    from deploy.local.suite import ROOT

    return next((ROOT / "build" / "models" / "digits").glob("*.png")).read_bytes()
