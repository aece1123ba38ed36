"""A server for the bench: `ours` or `grpcio`, echoing ModelInfer. argv: kind, port; "task" makes ours wait once."""

from __future__ import annotations

import asyncio
import importlib
import sys

from penstock.wire.call import Answer, Call

PATH = "/inference.GRPCInferenceService/ModelInfer"


async def echo(call: Call) -> Answer:
    return Answer(call.payload)


async def echo_later(call: Call) -> Answer:
    await asyncio.sleep(0)
    return Answer(call.payload)


async def ours(port: int, *, later: bool) -> None:
    from penstock.kit import heap
    from penstock.wire.http2 import Method, Server

    heap.keep_freed()
    server = Server({PATH: Method("ModelInfer", echo_later if later else echo)})
    await server.start("127.0.0.1", port)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def grpcio(port: int) -> None:
    import grpc

    async def serve(payload: bytes, context: object) -> bytes:
        return payload

    handler = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": grpc.unary_unary_rpc_method_handler(serve)}
    )
    size = 80 << 20
    server = grpc.aio.server(
        options=(("grpc.max_send_message_length", size), ("grpc.max_receive_message_length", size))
    )
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


def main() -> None:
    kind, port = sys.argv[1], int(sys.argv[2])
    if "uvloop" in sys.argv:
        importlib.import_module("uvloop").install()
    asyncio.run(grpcio(port) if kind == "grpcio" else ours(port, later=kind == "task"))


if __name__ == "__main__":
    main()
