"""The bridge on a real port, for tests: fixture `served`; and on a unix socket: `clients`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from penstock.kit.ports import bound
from services.gateway.rest import serve_rest
from tests.integration.rest_fakes import EchoInference, FakeControl, authenticate

LIMIT: Final = 64 << 20
SMALL_LIMIT: Final = 4 << 20


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
            async with asyncio.timeout(30):
                with suppress(ConnectionError):
                    while piece := await reader.read(1 << 16):
                        answer += piece
            return answer
        finally:
            writer.close()


@asynccontextmanager
async def clients(
    folder: Path, inference: EchoInference, control: FakeControl, ready: Callable[[], str | None] = lambda: None
) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    """Clients of a bridge on a unix socket, to whom it is `http://gateway`, with a small limit and a short deadline."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "rest"))
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        serve_rest(
            sock=listener,
            inference=inference,
            control=control,
            ready=ready,
            max_body_bytes=SMALL_LIMIT,
            default_timeout=5.0,
            authenticate=authenticate,
            drain_seconds=5.0,
            listening=listening.set_result,
        )
    )
    assert await listening == 0

    def client(**options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(folder / "rest")), **options)

    yield client
    inference.release.set()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    inference, control = EchoInference(), FakeControl()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        serve_rest(
            sock=bound("127.0.0.1", 0),
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
