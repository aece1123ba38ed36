"""The access log: who asked for what, how that ended and how long it took; for a share of the requests, and all that
fail.

A request that is not written costs a number by chance; one that is, an entry in a list. Lines are made by `run`, some
together, outside of any request. More than MOST of them at a time are counted instead: callers who fail in a loop must
not fill a disk.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from penstock.kit.log import get_logger
from penstock.wire.call import TRACEPARENT, Call

INTERVAL: Final = 0.25
"""Seconds between two writings."""
MOST: Final = 250
NAME: Final = 128
"""Characters of a model's name, which may be a caller's invention."""

Entry = tuple[str, str, str, str, str, str, int, float]


class AccessLog:
    """What waits to be written.

    Args:
        share: of the requests that ended well, 0 to 1.
        write: takes the event and its fields.
    """

    def __init__(
        self,
        share: float,
        *,
        write: Callable[..., Any] | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._share = share
        self._write = write if write is not None else get_logger().info
        self._chance = chance
        self._entries: list[Entry] = []
        self._left_out = 0

    def ended(self, call: Call, model: str, code: str, seconds: float) -> None:
        """A request has ended; model: as its caller named it; code: OK or that of the error."""
        if code == "OK" and self._chance() >= self._share:
            return
        if len(self._entries) == MOST:
            self._left_out += 1
            return
        parent = call.headers.get(TRACEPARENT, "")
        self._entries.append(
            (call.method, model[:NAME], code, call.caller, call.request_id, parent, len(call.payload), seconds)
        )

    async def run(self) -> None:
        """Writes until cancelled, and then what is left."""
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                self.flush()
        finally:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        entries, self._entries = self._entries, []
        for method, model, code, caller, request_id, parent, size, seconds in entries:
            trace = parent.split("-")
            about = {"trace_id": trace[1]} if len(trace) > 2 else {}
            self._write(
                "request",
                method=method,
                model=model,
                code=code,
                milliseconds=round(seconds * 1e3, 3),
                bytes=size,
                caller=caller,
                request_id=request_id,
                **about,
            )
        if self._left_out:
            left_out, self._left_out = self._left_out, 0
            self._write("requests_not_written", count=left_out)
