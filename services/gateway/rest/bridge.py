"""What happens around every operation: method, origin, credential, deadline, then the operation, then its answer.

Errors become answers by the table; answers get the headers that every answer has and are compressed where the caller
takes it. An operation that can do so answers directly; the others are coroutines, tasks from where they first wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, Final

import penstock
from penstock.errors import Cancelled, DeadlineExceeded, Internal, PenstockError, PermissionDenied
from penstock.kit.log import REQUEST_ID_OF_CALL, get_logger
from penstock.wire.call import CALLER_OF_CALL, Pending
from penstock.wire.http2 import eager
from penstock.wire.http2.deadlines import Deadlines, deadlines_of

from . import compression, openapi
from .builds import BuildRoutes
from .exchange import Exchange
from .head import Heads
from .inference import Inference, InferenceRoutes
from .management import Control, ManagementRoutes
from .operations import Operation
from .pages import Pages
from .replies import LAST_CHUNK, Dialect, Reply, Streamed, chunk, error_reply, routing_error
from .routing import Router
from .table import inference_operations, management_operations
from .uploads import UploadRoutes

Authenticate = Callable[[Mapping[str, str]], str]

log = get_logger()

_OFF_LOOP_BYTES: Final = 1 << 16


class Bridge:
    """The operations and what they share; arguments as for serve_rest. Made and used inside of one event loop.

    tasks: operations that wait for something.
    """

    def __init__(
        self,
        *,
        inference: Inference,
        control: Control,
        ready: Callable[[], str | None],
        max_body_bytes: int,
        default_timeout: float,
        authenticate: Authenticate,
    ) -> None:
        pages = Pages()
        operations = [
            *inference_operations(InferenceRoutes(inference, ready)),
            *management_operations(ManagementRoutes(control), UploadRoutes(control), BuildRoutes(control)),
            *pages.operations(),
        ]
        pages.document = openapi.document(operations, penstock.__version__)
        self.router = Router(operations)
        self.heads = Heads(self.router)
        self.max_body_bytes = max_body_bytes
        self.tasks: set[asyncio.Task[None]] = set()
        self._authenticate, self._default_timeout = authenticate, default_timeout
        self._loop = asyncio.get_running_loop()
        self._deadlines: Deadlines = deadlines_of(self._loop)

    # A request.

    def begin(self, exchange: Exchange, now: float) -> None:
        """The head is there, and maybe the body: answers, or asks for the rest. now: on the loop's clock."""
        head = exchange.head
        operation = head.operation
        if exchange.out is not None:
            return
        if operation is None:
            headers = {"allow": head.allowed} if head.allowed else {}
            self.answer(exchange, routing_error(405 if headers else 404, head.path, headers, exchange.request_id))
            return
        try:
            if head.foreign:
                message = "requests from web pages of another origin are not allowed"
                raise PermissionDenied(message, field="origin")
            caller = "" if operation.open else self._authenticate(head.headers)
            exchange.admit(caller, now, operation.timeout or self._default_timeout)
            if operation.direct is None or exchange.coding():
                self.start(exchange, operation.answer(exchange))
            elif exchange.body_ended and exchange.head.length <= exchange.limit:
                self.whole(exchange)
            else:
                exchange.announce(exchange.limit)
                exchange.collecting = True
                exchange.connection.wants_body(exchange)
        except Exception as problem:
            self.fail(exchange, problem)
        if exchange.out is None and not exchange.tick and not exchange.streams:
            self._deadlines.add(exchange)

    def whole(self, exchange: Exchange) -> None:
        """The body of a request that may be answered directly is there."""
        operation = exchange.head.operation
        assert operation is not None and operation.direct is not None
        try:
            if not operation.direct(exchange):
                self.start(exchange, operation.answer(exchange))
        except Exception as problem:
            self.fail(exchange, problem)

    def start(self, exchange: Exchange, answering: Awaitable[Reply]) -> None:
        """Runs what will answer the exchange."""
        self.run(exchange, self._packed(exchange, answering), partial(self._answered, exchange))

    def run(self, exchange: Exchange, work: Any, then: Callable[[Any, BaseException | None], None]) -> None:
        """Runs a coroutine in the name of the exchange's caller; the task, where it has to wait, is what is pending."""
        context = copy_context()
        context.run(CALLER_OF_CALL.set, exchange.caller)
        context.run(REQUEST_ID_OF_CALL.set, exchange.request_id)
        task = eager.start(self._loop, work, context, then)
        if task is not None:
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            self.await_end(exchange, task)

    def await_end(self, exchange: Exchange, pending: Pending) -> None:
        """Something will answer the exchange, unless it is cancelled."""
        if exchange.out is None and not exchange.left:
            exchange.pending = pending

    # Its answer.

    def answer(self, exchange: Exchange, reply: Reply) -> None:
        """The exchange ends with this, unless it has ended."""
        if exchange.out is not None or exchange.left:
            return
        if len(reply.body) >= compression.MIN_BYTES and "vary" not in reply.headers:
            if len(reply.body) >= _OFF_LOOP_BYTES and self._choose(exchange):
                self.start(exchange, _given(reply))
                return
            reply = self._compressed(exchange, reply)
        self.over(exchange)
        connection = exchange.connection
        head = reply.head(exchange.request_id, connection.server.date, connection.closing_word(exchange))
        exchange.out = [head] if not reply.body or exchange.head.method == "HEAD" else [head, reply.body]
        connection.answered()

    def fail(self, exchange: Exchange, problem: BaseException | None) -> None:
        """The exchange ends with an error, unless it has ended."""
        if exchange.out is not None or exchange.left:
            return
        operation = exchange.head.operation
        dialect = operation.dialect if operation is not None else Dialect.INFERENCE
        error = self._public(exchange, problem, operation)
        self.answer(exchange, error_reply(error, dialect, exchange.request_id))

    def expire(self, exchange: Exchange) -> None:
        """The deadline of an exchange has passed."""
        if exchange.out is None:
            pending = exchange.pending
            self.fail(exchange, DeadlineExceeded("the deadline passed before an answer was ready"))
            if pending is not None:
                pending.cancel()

    def over(self, exchange: Exchange) -> None:
        """Nothing is kept for the exchange any more but its answer."""
        if exchange.tick:
            self._deadlines.discard(exchange)
        exchange.pending = None  # which knows the exchange, so that only the collector would find them
        exchange.received = b""
        exchange.connection.discharge(exchange)

    def _public(self, exchange: Exchange, problem: BaseException | None, operation: Operation | None) -> PenstockError:
        if isinstance(problem, PenstockError):
            if problem.code is Internal.code or problem.detail:
                log.warning(
                    "rest_failed",
                    code=problem.code.name,
                    message=problem.message,
                    detail=problem.detail,
                    request_id=exchange.request_id,
                )
            return problem
        if isinstance(problem, asyncio.CancelledError):
            return Cancelled("the request was cancelled")
        path = operation.path if operation is not None else ""
        log.error("rest_crashed", path=path, request_id=exchange.request_id, exc_info=problem)
        return Internal(f"internal error; the log has it under request id {exchange.request_id}")

    def _answered(self, exchange: Exchange, reply: Reply | None, problem: BaseException | None) -> None:
        if reply is None:
            self.fail(exchange, problem)
        else:
            self.answer(exchange, reply)

    async def _packed(self, exchange: Exchange, answering: Awaitable[Reply]) -> Reply:
        """A large answer is compressed beside the loop."""
        reply = await answering
        if isinstance(reply, Streamed):
            return await self._streamed(exchange, reply)
        if len(reply.body) >= _OFF_LOOP_BYTES and self._choose(exchange):
            return await asyncio.to_thread(self._compressed, exchange, reply)
        return reply

    async def _streamed(self, exchange: Exchange, reply: Streamed) -> Reply:
        """Puts an answer out as it comes; what makes it has a deadline of its own, or none."""
        connection = exchange.connection
        try:
            async with aclosing(reply.pieces):
                if exchange.head.method == "HEAD":
                    return Reply(reply.status)
                self._deadlines.discard(exchange)
                exchange.streams = exchange.leaving_cancels = True
                word = connection.closing_word(exchange)
                connection.put(reply.head(exchange.request_id, connection.server.date, word))
                async for piece in reply.pieces:
                    if not connection.put(chunk(piece)):
                        await exchange.caught_up()
        except asyncio.CancelledError:
            if not exchange.ends:
                raise
        except Exception as problem:
            self._public(exchange, problem, exchange.head.operation)  # the log is all that can be told
            if exchange.streams:
                exchange.out = []
                connection.abort()
            raise
        self.over(exchange)
        exchange.out = [LAST_CHUNK]
        connection.answered()
        return reply

    def _choose(self, exchange: Exchange) -> str | None:
        return compression.choose(exchange.head.headers.get("accept-encoding", ""))

    def _compressed(self, exchange: Exchange, reply: Reply) -> Reply:
        """The reply as the caller takes it, which depends on what it says it takes."""
        headers = {**reply.headers, "vary": "accept-encoding"}
        coding = self._choose(exchange)
        if coding is None:
            return replace(reply, headers=headers)
        headers["content-encoding"] = coding
        return replace(reply, body=compression.compress(reply.body, coding), headers=headers)


async def _given(reply: Reply) -> Reply:
    return reply
