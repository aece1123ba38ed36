"""Calls that this server does not know, passed to another one as they are: any kind, bytes both ways, errors whole.

The gateway's public port uses it for management, health and reflection, which a grpcio server behind a unix socket of
the same process keeps serving, authentication included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Final

from penstock.wire.call import Call

from .client import Peer
from .client_stream import ClientStream
from .head import Method, StreamHandler, Write

_NOT_ONWARD: Final = frozenset(
    ("te", "content-type", "content-length", "user-agent", "grpc-timeout", "grpc-accept-encoding", "grpc-encoding")
)
_NOT_BACK: Final = frozenset(("grpc-status", "grpc-message"))


class Forwarding(dict[str, Method]):
    """Methods by path, and behind them a peer for every path that begins with one of `prefixes`.

    prefixes: such as `/penstock.v1.`; the peer authenticates, so nothing is asked of the caller here.
    """

    def __init__(self, methods: Mapping[str, Method], peer: Peer, prefixes: tuple[str, ...]) -> None:
        super().__init__(methods)
        self._peer, self._prefixes = peer, prefixes

    def get(self, path: str, default: Method | None = None) -> Method | None:  # type: ignore[override]
        """The method, or one that forwards."""
        known = super().get(path)
        if known is None and path.startswith(self._prefixes):
            return Method(path, stream=_to(self._peer, path), open=True)
        return known or default


def _to(peer: Peer, path: str) -> StreamHandler:
    async def forward(call: Call, requests: AsyncIterator[bytes], write: Write) -> Mapping[str, str]:
        headers = {name: value for name, value in call.headers.items() if name not in _NOT_ONWARD}
        async with (
            await peer.stream(path, deadline=call.deadline, headers=headers) as onward,
            asyncio.TaskGroup() as group,
        ):
            sending = group.create_task(_send(onward, requests))
            try:
                async for message in onward:
                    await write(message)
            finally:
                sending.cancel()
        return {name: value for name, value in onward.trailers.items() if name not in _NOT_BACK}

    async def ungrouped(call: Call, requests: AsyncIterator[bytes], write: Write) -> Mapping[str, str]:
        try:
            return await forward(call, requests, write)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    return ungrouped


async def _send(onward: ClientStream, requests: AsyncIterator[bytes]) -> None:
    async for message in requests:
        if not onward.open:
            return
        await onward.send(message)
    onward.end()
