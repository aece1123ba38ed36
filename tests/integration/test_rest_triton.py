"""tritonclient over HTTP, unmodified, with its defaults and without them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.integration.rest_fakes import TOKEN
from tests.integration.rest_served import Served, served

__all__ = ["served"]


async def in_thread(port: int, work: Callable[[Any, Any], Any]) -> Any:
    """Runs `work(client, tritonclient.http)` off the loop, since that client blocks."""

    def run() -> Any:
        import tritonclient.http as triton

        client = triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=20)
        try:
            return work(client, triton)
        finally:
            client.close()

    return await asyncio.to_thread(run)


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False, True]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 2**16 - 1]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.5, -65504]], np.float16),
    "FP32": np.array([[0.1, -3.4e38]], np.float32),
    "FP64": np.array([[0.1, -1.7e308]], np.float64),
    "BYTES": np.array([["hällo".encode(), b""]], np.object_),
}


@pytest.mark.parametrize("datatype", ARRAYS)
async def test_tritonclient_with_its_defaults_and_with_json(served: Served, datatype: str) -> None:
    array = ARRAYS[datatype]

    def work(client: Any, triton: Any) -> None:
        for binary_in, outputs in (
            (True, None),
            (True, [triton.InferRequestedOutput("x", binary_data=True)]),
            (True, [triton.InferRequestedOutput("x", binary_data=False)]),
            (False, [triton.InferRequestedOutput("x", binary_data=True)]),
            (False, [triton.InferRequestedOutput("x", binary_data=False)]),
            (False, None),
        ):
            tensor = triton.InferInput("x", list(array.shape), datatype)
            tensor.set_data_from_numpy(array, binary_data=binary_in)
            in_json = not binary_in or (
                outputs is not None and not outputs[0]._get_tensor()["parameters"]["binary_data"]
            )
            if datatype == "FP16" and in_json:
                with pytest.raises(triton.InferenceServerException, match="FP16") as caught:
                    client.infer("echo", [tensor], outputs=outputs, headers=dict(TOKEN))
                assert caught.value.status() == "400"
                continue
            result = client.infer("echo", [tensor], outputs=outputs, request_id="r", headers=dict(TOKEN))
            assert result.get_response()["id"] == "r"
            back = result.as_numpy("x")
            if datatype == "BYTES":
                back = np.vectorize(lambda item: item if isinstance(item, bytes) else item.encode(), otypes="O")(back)
            assert back.shape == array.shape
            assert np.array_equal(back, array)

    await in_thread(served.port, work)


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
async def test_tritonclient_compresses(served: Served, request_coding: str | None, response_coding: str | None) -> None:
    array = np.arange(20_000, dtype=np.float32).reshape(1, -1)

    def work(client: Any, triton: Any) -> None:
        tensor = triton.InferInput("x", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        result = client.infer(
            "echo",
            [tensor],
            headers=dict(TOKEN),
            request_compression_algorithm=request_coding,
            response_compression_algorithm=response_coding,
        )
        assert np.array_equal(result.as_numpy("x"), array)

    await in_thread(served.port, work)


async def test_tritonclient_sees_the_rest_of_the_protocol(served: Served) -> None:
    def work(client: Any, triton: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("echo", headers=dict(TOKEN))
        assert not client.is_model_ready("other", headers=dict(TOKEN))
        assert client.get_server_metadata(headers=dict(TOKEN))["name"] == "penstock"
        assert client.get_model_metadata("echo", "1", headers=dict(TOKEN))["inputs"][0]["name"] == "x"
        assert client.get_model_config("echo", headers=dict(TOKEN))["max_batch_size"] == 8
        assert client.get_inference_statistics("echo", headers=dict(TOKEN))["model_stats"][0]["name"] == "echo"
        assert client.get_model_repository_index(headers=dict(TOKEN))[0]["state"] == "READY"
        client.load_model("echo", headers=dict(TOKEN))
        client.unload_model("echo", headers=dict(TOKEN))
        failing: list[tuple[Callable[[], Any], str]] = [
            (lambda: client.get_model_metadata("other", headers=dict(TOKEN)), "404"),
            (lambda: client.get_server_metadata(), "401"),
            (lambda: client.get_log_settings(headers=dict(TOKEN)), "501"),
        ]
        for call, status in failing:
            with pytest.raises(triton.InferenceServerException) as caught:
                call()
            assert caught.value.status() == status

    await in_thread(served.port, work)


async def test_tritonclient_and_bf16(served: Served) -> None:
    """Binary both ways; the client itself never sends BF16 as JSON, so it is the answer that we refuse."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="tritonclient makes BF16 of ml_dtypes only")
    array = np.array([[0.5, -1.0, 3.0e38]], dtype=ml_dtypes.bfloat16)

    def work(client: Any, triton: Any) -> None:
        tensor = triton.InferInput("x", list(array.shape), "BF16")
        tensor.set_data_from_numpy(array)
        back = client.infer("echo", [tensor], headers=dict(TOKEN)).as_numpy("x")
        assert back.tobytes() == array.tobytes()
        in_json = [triton.InferRequestedOutput("x", binary_data=False)]
        with pytest.raises(triton.InferenceServerException, match="BF16") as caught:
            client.infer("echo", [tensor], outputs=in_json, headers=dict(TOKEN))
        assert caught.value.status() == "400"

    await in_thread(served.port, work)
