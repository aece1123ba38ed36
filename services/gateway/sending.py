"""A client-streaming call over grpc.aio that ends with what the server said.

grpc.aio overwrites the status that a server has sent with INTERNAL "Internal error from Core" when a write fails
because the call is over (grpc#36066, still so in grpcio 1.85): a server that refuses an upload early would be
misquoted now and then. So the status is noted when it arrives, and the response is read by itself, which is
why the method is called as stream-stream; on the wire that is the same. Very seldom no status comes at all after such a
write: then the call counts as lost, which says that it may be tried again, and nothing is quoted that nobody said.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import grpc

T = TypeVar("T")

STATUS_SECONDS = 10.0
"""How long to wait for the server's status after a write has failed without one."""

_MISQUOTED = (grpc.StatusCode.INTERNAL, "Internal error from Core")


class Sending:
    """One call. call: of a stream-stream callable without serializers, nothing sent yet."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._ended = asyncio.Event()  # some status is there
        self._told = asyncio.Event()  # the server's own is
        self._status: tuple[grpc.StatusCode, str, grpc.aio.Metadata] = (*_MISQUOTED, grpc.aio.Metadata())
        call.add_done_callback(self._note)

    def cancel(self) -> None:
        """Ends the call if it is under way."""
        self._call.cancel()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        """The server's, once it has ended the call."""
        return self._status[2]

    async def answer(self, messages: AsyncIterator[bytes]) -> bytes:
        """Sends the messages while waiting for the one answer, which may come before the last message.

        Raises AioRpcError with the server's status, or what the messages raised.
        """
        response: Any = grpc.aio.EOF
        try:
            async with asyncio.TaskGroup() as group:
                pump = group.create_task(self._pump(messages))
                with contextlib.suppress(grpc.aio.AioRpcError):  # its status is noted, or it is a misquotation
                    response = await self._call.read()
                # Before the pump is cancelled: cancelling a write cancels the call, and then no status comes.
                await self._wait_for_status(answered=response is not grpc.aio.EOF)
                pump.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            self._call.cancel()
        code, details, trailers = self._status
        if response is grpc.aio.EOF and not self._told.is_set():
            code, details = grpc.StatusCode.UNAVAILABLE, "the call ended without a status"
        # A server sends the one response together with OK, so a response without a status is as good.
        if response is not grpc.aio.EOF and (code is grpc.StatusCode.OK or not self._told.is_set()):
            return bytes(response)
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=details)

    async def _pump(self, messages: AsyncIterator[bytes]) -> None:
        """Writing waits for the receiver. A call that has ended says so to whoever reads."""
        async for message in messages:
            try:
                await self._call.write(message)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def _wait_for_status(self, *, answered: bool) -> None:
        await self._ended.wait()
        if not answered:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    await self._told.wait()

    def _note(self, call: Any) -> None:
        """Called by grpc.aio each time that it sets the status."""
        code, details = _now(call.code()), _now(call.details())
        self._ended.set()
        if (code, details) != _MISQUOTED and not self._told.is_set():
            self._status = (code, details, _now(call.trailing_metadata()))
            self._told.set()


def _now(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    coroutine.close()
    raise RuntimeError("the status of a call that has ended is not there")
