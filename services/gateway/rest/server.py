"""serve_rest: the bridge under uvicorn, inside of somebody else's event loop and task group."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import uvicorn

from .app import build_app
from .inference import Inference
from .management import Control
from .protocol import BoundedProtocol

_BACKLOG: Final = 1024
_KEEP_ALIVE_SECONDS: Final = 75
"""Idle connections stay this long: longer than the pools of common clients, so that these close first."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the chassis has the signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve_rest(
    *,
    host: str,
    port: int,
    inference: Inference,
    control: Control,
    ready: Callable[[], str | None],
    max_body_bytes: int,
    default_timeout: float,
    authenticate: Callable[[Mapping[str, str]], str],
    tls: ssl.SSLContext | None = None,
    drain_seconds: float = 30.0,
    listening: Callable[[int], None] | None = None,
) -> None:
    """Serves HTTP/1.1 until cancelled; then takes no new connection and lets answers finish.

    ready: None while the server takes requests, else the public reason. max_body_bytes: of one body, also after
    decompression. default_timeout: seconds for a request that brings no deadline. authenticate: caller's name by the
    lower-case headers, raises Unauthenticated. tls: for HTTPS. drain_seconds: how long answers may take once
    cancelled. listening: told the port once connections are taken; port 0 lets the system choose. Raises OSError when
    the port is taken.
    """
    app = build_app(
        inference=inference,
        control=control,
        ready=ready,
        max_body_bytes=max_body_bytes,
        default_timeout=default_timeout,
        authenticate=authenticate,
    )
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_config=None,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
    )
    config.load()
    config.ssl = tls
    listener = _listen(host, port)
    server = _Server(config)
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    if listening is not None:
        listening(listener.getsockname()[1])
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await asyncio.wait({serving})
        raise
    finally:
        # Only a second cancellation, while draining, finds it running.
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket that says it is TCP.

    asyncio switches Nagle's algorithm off only for sockets that were made with IPPROTO_TCP, which those of
    `socket.create_server` were not: head and body of an answer would lie 40 ms apart.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
