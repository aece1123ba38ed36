"""The field's standard client, unmodified and with its defaults, over gRPC and HTTP: every datatype, every call that
Penstock advertises."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from deploy.local.suite import Suite
from tests.e2e.conftest import grpc_address, rest_address

VALUES: dict[str, Any] = {
    "BOOL": np.array([[True, False]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-32768, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[1.5, -65504.0]], np.float16),
    "BF16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    "FP32": np.array([[3.4e38, -1e-38]], np.float32),
    "FP64": np.array([[1.7e308, -5e-324]], np.float64),
    "BYTES": np.array([["größe".encode(), b"two words"]], dtype=np.object_),
}


def make_inputs(module: Any, **options: Any) -> list[Any]:
    """One input per datatype."""
    inputs = []
    for datatype, array in VALUES.items():
        each = module.InferInput(f"in_{datatype.lower()}", list(array.shape), datatype)
        each.set_data_from_numpy(array, **(options if datatype not in ("FP16", "BF16") else {}))
        inputs.append(each)
    return inputs


def assert_unchanged(result: Any) -> None:
    """Every output equals its input, bit for bit."""
    for datatype, array in VALUES.items():
        found = result.as_numpy(f"out_{datatype.lower()}")
        assert found is not None, datatype
        assert found.shape == array.shape, datatype
        if datatype == "BYTES":
            found = np.array([[x.encode() if isinstance(x, str) else x for x in row] for row in found], np.object_)
        assert (found == array).all(), datatype


@pytest.fixture
def over_grpc(suite: Suite) -> Any:
    with triton_grpc.InferenceServerClient(grpc_address(suite)) as client:
        yield client


@pytest.fixture
def over_http(suite: Suite) -> Any:
    client = triton_http.InferenceServerClient(rest_address(suite))
    yield client
    client.close()


def test_grpc_carries_every_datatype(over_grpc: Any, identity: str) -> None:
    result = over_grpc.infer(identity, make_inputs(triton_grpc), request_id="r-1")
    assert_unchanged(result)
    assert result.get_response().id == "r-1"
    assert result.get_response().model_name == identity


def test_http_carries_every_datatype_in_binary_by_default(over_http: Any, identity: str) -> None:
    assert_unchanged(over_http.infer(identity, make_inputs(triton_http), request_id="r-2"))


def test_http_carries_every_json_datatype_as_json(over_http: Any, identity: str) -> None:
    inputs = make_inputs(triton_http, binary_data=False)
    outputs = [
        triton_http.InferRequestedOutput(f"out_{datatype.lower()}", binary_data=datatype in ("FP16", "BF16"))
        for datatype in VALUES
    ]
    assert_unchanged(over_http.infer(identity, inputs, outputs=outputs))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_http_compresses_both_ways(over_http: Any, identity: str, algorithm: str) -> None:
    result = over_http.infer(
        identity,
        make_inputs(triton_http),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert_unchanged(result)


@pytest.mark.parametrize("module", ["grpc", "http"])
def test_every_other_call_answers(over_grpc: Any, over_http: Any, identity: str, module: str) -> None:
    client = over_grpc if module == "grpc" else over_http
    as_json = {"as_json": True} if module == "grpc" else {}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(identity)
    assert client.is_model_ready(identity, "1")
    server = client.get_server_metadata(**as_json)
    assert server["name"] == "penstock"
    assert "binary_tensor_data" in server["extensions"]
    metadata = client.get_model_metadata(identity, **as_json)
    assert {each["name"] for each in metadata["inputs"]} == {f"in_{datatype.lower()}" for datatype in VALUES}
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 2]
    config = client.get_model_config(identity, **as_json)
    config = config.get("config", config)
    assert config["name"] == identity
    assert int(config["max_batch_size"]) == 8
    index = client.get_model_repository_index(**as_json)
    models = index["models"] if module == "grpc" else index
    assert any(each["name"] == identity and each["state"] == "READY" for each in models)
    statistics = client.get_inference_statistics(identity, **as_json)
    assert statistics["model_stats"][0]["name"] == identity


def test_statistics_count_rows_and_batches(over_grpc: Any, add1: str) -> None:
    def counted() -> tuple[int, int, int]:
        stats = over_grpc.get_inference_statistics(add1).model_stats[0]
        return stats.inference_count, stats.execution_count, stats.inference_stats.success.count

    before = counted()
    rows = triton_grpc.InferInput("x", [5, 16], "FP32")
    rows.set_data_from_numpy(np.ones((5, 16), np.float32))
    over_grpc.infer(add1, [rows])
    after = counted()
    # A request of five rows adds five inferences, one execution, one success.
    assert [b - a for a, b in zip(before, after, strict=True)] == [5, 1, 1]


def test_unknown_model_is_not_found_in_both(over_grpc: Any, over_http: Any) -> None:
    with pytest.raises(InferenceServerException) as grpc_error:
        over_grpc.get_model_metadata("nobody")
    assert grpc_error.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException) as http_error:
        over_http.get_model_metadata("nobody")
    assert http_error.value.status() == "404"


def test_stream_keeps_order_and_outlives_an_error(over_grpc: Any, add1: str) -> None:
    got: list[tuple[Any, Any]] = []
    over_grpc.start_stream(lambda result, error: got.append((result, error)))
    for number in range(20):
        rows = triton_grpc.InferInput("x", [1, 16], "FP32")
        rows.set_data_from_numpy(np.full((1, 16), number, np.float32))
        over_grpc.async_stream_infer("nobody" if number == 7 else add1, [rows], request_id=str(number))
    over_grpc.stop_stream()  # waits for what is under way
    assert len(got) == 20
    for number, (result, error) in enumerate(got):
        if number == 7:
            assert "nobody" in str(error)
            continue
        assert error is None
        response = result.get_response()
        assert response.id == str(number)
        assert response.parameters["triton_final_response"].bool_param is True
        assert (result.as_numpy("y") == number + 1).all()


def test_repository_load_and_unload(over_grpc: Any, over_http: Any, client: Any, folder: Any) -> None:
    from tests.harness import models

    client.publish(models.add_one(folder / "loadme", "loadme"))
    assert not over_grpc.is_model_ready("loadme")
    over_grpc.load_model("loadme")
    assert over_grpc.is_model_ready("loadme")
    over_http.unload_model("loadme")
    assert not over_http.is_model_ready("loadme")
    over_http.load_model("loadme")
    assert over_http.is_model_ready("loadme")
    over_grpc.unload_model("loadme")
    assert not over_grpc.is_model_ready("loadme")
