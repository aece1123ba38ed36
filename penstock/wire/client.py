"""The calling side of the data plane: one peer, unary calls as bytes.

grpcio underneath, without its message classes: request and response pass as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc

from penstock.channel import dial, error_info, error_of
from penstock.errors import DeadlineExceeded, Unavailable
from penstock.wire.call import Answer

SERVICE = "inference.GRPCInferenceService"


_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""Statuses that mean, without an ErrorInfo, that no service answered: a server that stops cancels what is left."""


class ConnectionLost(Unavailable):
    """The connection failed before the peer answered: nothing is known of what it did. Inference may be retried."""


class Peer:
    """One server of the inference protocol at host:port."""

    def __init__(self, address: str, *, token: str = "") -> None:
        self.address = address
        self._channel = dial(address)
        # Not by dial's interceptors: those cost a task per call.
        self._credential = (("authorization", f"Bearer {token}"),) if token else ()
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    async def unary(self, method: str, payload: bytes, *, deadline: float, headers: Mapping[str, str]) -> Answer:
        """Calls `method` (bare name) with serialised bytes.

        deadline: absolute on the loop's clock; headers: those that gRPC could not send are left out. Raises the peer's
        PenstockError, ConnectionLost when the transport failed, DeadlineExceeded when time ran out. Cancelling the
        task cancels the call at the peer.
        """
        timeout = deadline - asyncio.get_running_loop().time()
        if timeout <= 0:
            raise DeadlineExceeded("the deadline passed before the request was sent")
        sendable = ((key, value) for key, value in headers.items() if value.isascii() and value.isprintable())
        metadata = grpc.aio.Metadata(*sendable, *self._credential)
        call = self._method(method)(payload, timeout=timeout, metadata=metadata)
        try:
            response = await call
            trailers = {key: value for key, value in await call.trailing_metadata() if isinstance(value, str)}
        except grpc.aio.AioRpcError as failure:
            if failure.code() in _LOST and error_info(failure.trailing_metadata() or ()) is None:
                raise ConnectionLost("the connection to the worker was lost", detail=failure.details() or "") from None
            raise error_of(failure) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if call.cancelled() and task is not None and not task.cancelling():
                # Nobody cancelled us: `close` cut the call off, which gRPC tells in the same words.
                raise ConnectionLost("the connection to the worker was closed") from None
            raise
        return Answer(response, trailers)

    async def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        await self._channel.close()

    def _method(self, name: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        method = self._methods.get(name)
        if method is None:
            # Without serializers grpcio passes bytes through.
            method = self._channel.unary_unary(f"/{SERVICE}/{name}")
            self._methods[name] = method
        return method
