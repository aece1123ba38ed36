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


class ConnectionLost(Unavailable):
    """The connection failed before the peer answered: nothing is known of what it did. Inference may be retried."""


class Peer:
    """One server of the inference protocol at host:port."""

    def __init__(self, address: str, *, token: str = "") -> None:
        self.address = address
        self._channel = dial(address, token=token)
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    async def unary(self, method: str, payload: bytes, *, deadline: float, headers: Mapping[str, str]) -> Answer:
        """Calls `method` (bare name) with serialised bytes.

        deadline: absolute on the loop's clock. Raises the peer's PenstockError, ConnectionLost when the transport
        failed, DeadlineExceeded when time ran out. Cancelling the task cancels the call at the peer.
        """
        timeout = deadline - asyncio.get_running_loop().time()
        if timeout <= 0:
            raise DeadlineExceeded("the deadline passed before the request was sent")
        call = self._method(method)(payload, timeout=timeout, metadata=grpc.aio.Metadata(*headers.items()))
        try:
            response = await call
            trailers = {key: value for key, value in await call.trailing_metadata() if isinstance(value, str)}
        except grpc.aio.AioRpcError as failure:
            if failure.code() is grpc.StatusCode.UNAVAILABLE and error_info(failure.trailing_metadata()) is None:
                raise ConnectionLost("the connection to the worker was lost", detail=failure.details() or "") from None
            raise error_of(failure) from None
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
