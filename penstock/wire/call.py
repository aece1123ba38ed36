"""One inference call and its answer, as both hops see them: bytes, a deadline, a few headers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

from penstock.errors import DeadlineExceeded
from penstock.wire.origin import ELSEWHERE, Origin

# Headers of a call, lower case, on both hops.
VERSION = "penstock-version"
"""Version number that the gateway has resolved; the worker obeys it before the message's own model_version."""
REGIONS = "penstock-regions"
"""Shared memory regions that a request's tensors lie in, as the gateway has found them (penstock/regions.py)."""
REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"

# What the gate in front of a server has found out about the call that is being served (penstock/kit/server.py).
REQUEST_ID_OF_CALL: ContextVar[str] = ContextVar("request_id", default="")
"""Well-formed id, the caller's or a new one; empty outside a call."""
CALLER_OF_CALL: ContextVar[str] = ContextVar("caller", default="")
"""Authenticated name; empty outside a call."""

# Trailers of an answer. The gateway hands them on; the REST bridge sends them as headers.
WORKER = "penstock-worker"
BATCH_SIZE = "penstock-batch-size"
QUEUE_MICROSECONDS = "penstock-queue-us"
QUEUE_DEPTH = "penstock-queue-depth"


Payload: TypeAlias = Any
"""A serialised message, bytes or a view as Call says. Anything to a type checker: protobuf takes both, its stubs know
bytes alone, and compiled code (penstock/kit/compiled.py) insists on bytes where bytes are declared."""


@dataclass(slots=True)
class Call:
    """A unary inference call.

    method: bare name, such as `ModelInfer`; payload: the serialised request message (see below); deadline: absolute, on
    the clock of `asyncio`'s loop (`loop.time()`), always set; headers: lower-case names, as the caller sent them, not
    to be changed; caller: authenticated name; request_id: well-formed, the caller's or one made up at its entry;
    sampled: whether it is traced, None while nobody has decided; origin: where the connection comes from. Cancellation
    is ordinary task cancellation of whoever handles the call.

    A large payload, of a call or an answer, is not bytes but a read-only memoryview of the buffer that it was received
    into. It compares, slices, indexes and joins as bytes do, and stays as it is for as long as anybody holds it or a
    part of it; it has no methods of bytes, `decode` among them, and does not add.
    """

    method: str
    payload: Payload
    deadline: float
    headers: Mapping[str, str] = field(default_factory=dict)
    caller: str = ""
    request_id: str = ""
    sampled: bool | None = None
    origin: Origin = ELSEWHERE

    def remaining(self) -> float:
        """Seconds left; raises DeadlineExceeded when none are."""
        left = self.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be served")
        return left


class Answer:
    """payload: the serialised response message; trailers: lower-case names, not to be changed."""

    __slots__ = ("payload", "trailers")

    def __init__(self, payload: Payload, trailers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.payload = payload
        self.trailers = trailers


Handler = Callable[[Call], Awaitable[Answer]]
"""Answers a call or raises a PenstockError."""

Done = Callable[[Answer | None, BaseException | None], None]
"""Told how a call ended: its answer, or what went wrong."""


class Pending(Protocol):
    """A call that was begun without a task."""

    def cancel(self) -> object:
        """Nobody waits for it any more: `done` will not be called."""
        ...


Direct = Callable[[Call, Done], Pending | None]
"""Begins to answer a call without a task, which is what most calls can do and what costs least.

None when this call needs the Handler after all; then `done` is never called. Otherwise `done` is called exactly once,
maybe before this returns, and never after `cancel`. Like a handler it may raise a PenstockError instead.
"""
