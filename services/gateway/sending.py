"""A client-streaming call that ends with what the server said, however early that comes.

It goes over the data plane's own HTTP/2, unlike everything else that is passed on: grpc.aio overwrites the status that
a server has sent with INTERNAL "Internal error from Core" when a write fails because the call is over (grpc#36066,
still so in grpcio 1.85), and sometimes loses it, so a server that refuses an upload would be misquoted now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from penstock.errors import Internal
from penstock.wire.client import ClientStream, ConnectionLost, Peer


async def send(
    peer: Peer, method: str, messages: AsyncIterator[bytes], *, deadline: float, headers: Mapping[str, str]
) -> tuple[bytes, dict[str, str]]:
    """Sends the messages while waiting for the one answer, which may come before the last message.

    method: full path; deadline: on the loop's clock, infinity for none. Returns the answer and the trailers. Raises the
    server's PenstockError, ConnectionLost, DeadlineExceeded, or what the messages raised.
    """
    async with await peer.stream(method, deadline=deadline, headers=headers) as call:
        try:
            async with asyncio.TaskGroup() as group:
                pump = group.create_task(_pump(call, messages))
                response = await call.receive()
                if response is not None and await call.receive() is not None:
                    raise Internal(f"{method} answered twice")
                pump.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        if response is None:
            raise Internal(f"{method} ended without an answer")
        return response, call.trailers


async def _pump(call: ClientStream, messages: AsyncIterator[bytes]) -> None:
    """Sending waits for the receiver. A call that has ended says so to whoever reads."""
    async for message in messages:
        try:
            await call.send(message)
        except ConnectionLost:
            return
    call.end()
