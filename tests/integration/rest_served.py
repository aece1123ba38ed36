"""The bridge on a real port, for tests: fixture `served`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import pytest

from services.gateway.rest import serve_rest
from tests.integration.rest_fakes import EchoInference, FakeControl, authenticate

LIMIT: Final = 64 << 20


@dataclass
class Served:
    port: int
    inference: EchoInference
    control: FakeControl
    task: asyncio.Task[None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def exchange(self, *pieces: bytes) -> bytes:
        """Sends the pieces and reads until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            with suppress(ConnectionError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
            answer = b""
            async with asyncio.timeout(10):
                with suppress(ConnectionError):
                    while piece := await reader.read(1 << 16):
                        answer += piece
            return answer
        finally:
            writer.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    inference, control = EchoInference(), FakeControl()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        serve_rest(
            host="127.0.0.1",
            port=0,
            inference=inference,
            control=control,
            ready=lambda: None,
            max_body_bytes=LIMIT,
            default_timeout=30.0,
            authenticate=authenticate,
            drain_seconds=5.0,
            listening=port.set_result,
        )
    )
    yield Served(await port, inference, control, task)
    inference.release.set()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
