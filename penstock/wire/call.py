"""One inference call and its answer, as both hops see them: bytes, a deadline, a few headers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from penstock.errors import DeadlineExceeded

# Headers of a call, lower case, on both hops.
VERSION = "penstock-version"
"""Version number that the gateway has resolved; the worker obeys it before the message's own model_version."""
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


@dataclass(slots=True)
class Call:
    """A unary inference call.

    method: bare name, such as `ModelInfer`; payload: the serialised request message; deadline: absolute, on the clock
    of `asyncio`'s loop (`loop.time()`), always set; headers: lower-case names; caller: authenticated name.
    Cancellation is ordinary task cancellation of whoever handles the call.
    """

    method: str
    payload: bytes
    deadline: float
    headers: Mapping[str, str] = field(default_factory=dict)
    caller: str = ""

    def remaining(self) -> float:
        """Seconds left; raises DeadlineExceeded when none are."""
        left = self.deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the request could be served")
        return left


@dataclass(slots=True)
class Answer:
    """payload: the serialised response message; trailers: lower-case names."""

    payload: bytes
    trailers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Answer]]
"""Answers a call or raises a PenstockError."""
