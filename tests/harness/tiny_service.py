"""The smallest service on the kit's chassis, as a process: `python -m tests.harness.tiny_service [flags]`.

Its requests say what should happen (see `behave`); SIGUSR1 lets go of a request that holds.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from penstock import errors
from penstock.kit.config import ServiceConfig, load, setting
from penstock.kit.identity import caller
from penstock.kit.life import Life
from penstock.kit.log import get_logger
from penstock.kit.service import Chassis, run
from penstock.kit.supervision import supervise, supervised
from penstock.wire.call import Answer, Call
from penstock.wire.client import SERVICE as INFERENCE
from penstock.wire.server import Limits, Method, inference_methods

SERVICE = "test.Tiny"
SHAPES = ("Unary", "Down", "Up", "Both")
INFERENCE_METHODS = ("ModelInfer", "ServerLive")
REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
METHODS = (
    *(f"/{SERVICE}/{name}" for name in SHAPES),
    *(f"/{INFERENCE}/{name}" for name in (*INFERENCE_METHODS, "ModelStreamInfer")),
    f"/{REFLECTION}/ServerReflectionInfo",
)
"""Every registered method but health's."""


@dataclass(frozen=True, kw_only=True)
class TinyConfig(ServiceConfig):
    """One field of its own."""

    trouble: str = setting("", "what should go wrong", one_of=("", "assemble", "hang", "drain", "close"))
    processes: int = setting(1, "processes that serve", low=1)


class Tiny:
    """What the service does."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.doomed = asyncio.Event()

    async def background(self) -> None:
        """Runs until a request dooms it."""
        await self.doomed.wait()
        raise RuntimeError("the background task was told to fail")

    async def behave(self, text: bytes) -> bytes:
        """Does what the request says: `error CODE`, `crash`, `hold`, `doom`, `who`; else it is echoed."""
        word, _, rest = text.decode().partition(" ")
        if word == "error":
            raise errors.from_code(rest, "public text", field="inputs[0]", detail="for the log\nonly")
        if word == "crash":
            raise RuntimeError("secret /etc/passwd")
        if word == "hold":
            get_logger().warning("holding")
            await self.released.wait()
            if rest:
                return await self.behave(rest.encode())
        if word == "doom":
            self.doomed.set()
        return caller().encode() if word == "who" else text

    async def unary(self, request: bytes, context: Any) -> bytes:
        return await self.behave(request)

    async def down(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self.behave(request)

    async def up(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b",".join([await self.behave(request) async for request in requests])

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.behave(request)

    async def infer(self, call: Call) -> Answer:
        return Answer(await self.behave(call.payload))

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Its two services, in all four shapes."""
        shapes: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "Down": grpc.unary_stream_rpc_method_handler(self.down),
            "Up": grpc.stream_unary_rpc_method_handler(self.up),
            "Both": grpc.stream_stream_rpc_method_handler(self.both),
        }
        return (grpc.method_handlers_generic_handler(SERVICE, shapes),)

    def methods(self) -> dict[str, Method]:
        """Its part of the inference protocol."""
        unary = dict.fromkeys(INFERENCE_METHODS, self.infer)
        return inference_methods(unary, stream_infer=self.infer, default_timeout=60)


async def assemble(chassis: Chassis, config: TinyConfig) -> None:
    """Hangs it on the chassis; each step of the end logs that it was taken."""
    tiny = Tiny()
    log = get_logger()
    chassis.server.add_generic_rpc_handlers(tiny.handlers())
    chassis.serve_inference(tiny.methods())
    chassis.reflect([SERVICE, INFERENCE])
    chassis.start(tiny.background(), "background")
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tiny.released.set)

    def step(name: str) -> Any:
        async def taken() -> None:
            log.info("step", name=name, phase=chassis.not_ready())
            if config.trouble and config.trouble == name.split("-")[0]:
                raise RuntimeError(f"{name} was told to fail")

        return taken

    for name in ("drain-1", "drain-2"):
        chassis.on_drain(step(name))
    for name in ("close-1", "close-2"):
        chassis.on_close(step(name))
    if config.trouble == "assemble":
        raise RuntimeError("assembling was told to fail")
    if config.trouble == "hang":
        log.info("hanging")
        await asyncio.Event().wait()


async def supervising(_: Life) -> None:
    """The supervisor has nothing to run for it."""


def main() -> int:
    """Runs it."""
    config = load(TinyConfig, "tiny")
    if config.processes > 1 and not supervised():
        return supervise("tiny", config, supervising, count=config.processes)

    async def assembled(chassis: Chassis) -> None:
        await assemble(chassis, config)

    return run("tiny", config, assembled, data_plane=Limits())


if __name__ == "__main__":
    sys.exit(main())
