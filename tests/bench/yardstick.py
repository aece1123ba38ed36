"""What the benchmark measures against: a bare grpc.aio server, one process, nothing but the protocol's messages.

`python -m tests.bench.yardstick add1|echo` answers ModelInfer itself; `... forward <host:port>` passes the bytes on to
another one, as the smallest gateway would. Prints its port in one line and serves until its input closes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc
import numpy as np

from penstock.oip import inference_pb2 as oip

SERVICE: Final = "inference.GRPCInferenceService"
OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]


async def add_one(request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
    """y = x + 1 on the one input."""
    y = np.frombuffer(request.raw_input_contents[0], "<f4") + np.float32(1)
    return _answer(request, y.tobytes())


async def echo(request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
    """y = x, whatever it is."""
    return _answer(request, request.raw_input_contents[0])


def _answer(request: oip.ModelInferRequest, data: bytes) -> oip.ModelInferResponse:
    given = request.inputs[0]
    response = oip.ModelInferResponse(model_name=request.model_name, model_version="1")
    response.outputs.add(name="y", datatype=given.datatype, shape=given.shape)
    response.raw_output_contents.append(data)
    return response


def _forwarder(address: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
    call: Any = grpc.aio.insecure_channel(address, options=OPTIONS).unary_unary(f"/{SERVICE}/ModelInfer")

    async def forward(request: bytes, context: Any) -> bytes:
        answer: bytes = await call(request, timeout=context.time_remaining())
        return answer

    return forward


def handler(mode: str, address: str = "") -> Any:
    """The method handler of a mode."""
    if mode == "forward":
        return grpc.unary_unary_rpc_method_handler(_forwarder(address))
    return grpc.unary_unary_rpc_method_handler(
        {"add1": add_one, "echo": echo}[mode],
        request_deserializer=oip.ModelInferRequest.FromString,
        response_serializer=oip.ModelInferResponse.SerializeToString,
    )


async def serve(mode: str, address: str = "") -> None:
    """Serves until standard input ends."""
    server = grpc.aio.server(options=OPTIONS)
    methods = {"ModelInfer": handler(mode, address)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
