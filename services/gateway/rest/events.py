"""What happens to a build, as server-sent events (HTML, 9.2): `build`, `line`, `failure`, `end`.

The id of a line's event is the offset that goes on after it, so that a client which comes back with `Last-Event-ID` as
every EventSource does misses nothing and is told nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, TypeVar

import orjson

from penstock.errors import PenstockError
from penstock.v1 import builds_pb2 as pb

from .messages import to_plain
from .replies import Dialect, error_reply

T = TypeVar("T")

MEDIA_TYPE: Final = "text/event-stream"
BEAT_SECONDS: Final = 15.0
"""How long nothing may come before a comment does, so that proxies and a caller who is gone are noticed."""
BEAT: Final = b": still there\n\n"


async def of_build(
    first: pb.WatchBuildResponse | None,
    answers: AsyncGenerator[pb.WatchBuildResponse, None],
    request_id: str,
    *,
    beat: float = BEAT_SECONDS,
) -> AsyncGenerator[bytes, None]:
    """The events of a watched build. first: what has come already; request_id: told with a failure."""
    try:
        if first is not None:
            yield _events(first)
        async with aclosing(beating(answers, beat)) as coming:
            async for answer in coming:
                yield BEAT if answer is None else _events(answer)
    except PenstockError as error:
        yield _event("failure", error_reply(error, Dialect.MANAGEMENT, request_id).body)
    else:
        yield _event("end", b"{}")


async def beating(source: AsyncGenerator[T, None], seconds: float) -> AsyncGenerator[T | None, None]:
    """What comes, and None whenever so many seconds pass without. Closes the source."""
    coming: asyncio.Task[T] | None = None
    async with aclosing(source):
        try:
            while True:
                coming = coming or asyncio.ensure_future(_next(source))
                await asyncio.wait({coming}, timeout=seconds)
                if not coming.done():
                    yield None
                    continue
                try:
                    found = coming.result()
                except StopAsyncIteration:
                    return
                coming = None
                yield found
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait({coming})


async def _next(source: AsyncGenerator[T, None]) -> T:
    return await anext(source)


def _events(answer: pb.WatchBuildResponse) -> bytes:
    events = [_event("build", orjson.dumps(to_plain(answer.build)))] if answer.HasField("build") else []
    events += [_event("line", orjson.dumps(to_plain(line)), line.offset + 1) for line in answer.lines]
    return b"".join(events)


def _event(name: str, data: bytes, number: int | None = None) -> bytes:
    """One event; JSON as orjson writes it has no line breaks."""
    numbered = f"id: {number}\n" if number is not None else ""
    return f"{numbered}event: {name}\ndata: ".encode() + data + b"\n\n"
