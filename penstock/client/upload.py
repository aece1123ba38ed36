"""Uploading files by content: hash, ask what has arrived, send the rest, resume after a broken stream.

An artifact is named by the sha256 of its content, so an upload is safe to repeat and what is there already is not sent.
The stream itself runs on gRPC's threads rather than on the event loop: grpc.aio loses the status of a server that ends
a call before the client has (grpc/grpc#36066), and a registry that refuses an upload does just that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import grpc

from penstock.channel import raising
from penstock.client.connection import Connection
from penstock.errors import Cancelled, Conflict, Internal, InvalidArgument, NotFound, PenstockError, Unavailable
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc

CHUNK_BYTES: Final = 1 << 20
HASH_BYTES: Final = 8 << 20
ATTEMPTS: Final = 5
"""Broken streams in a row, without a byte arriving in between, before an upload gives up."""
_BROKEN: Final = (Unavailable, Cancelled, Conflict, Internal)
"""Failures after which asking again where to go on may help. Conflict: somebody else uploads the same content;
Internal: what a proxy makes of a stream that broke behind it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file is. step: `hash` or `upload`; done and total in bytes; done == total at the end of each step."""

    file: str
    step: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]


async def describe(path: Path, on_progress: OnProgress | None = None) -> pb.Artifact:
    """Digest and size of a file, read in a thread; raises OSError."""
    state = hashlib.sha256()
    size = await asyncio.to_thread(lambda: path.stat().st_size)
    done = 0
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while read := await asyncio.to_thread(_hash_some, file, state):
            done += read
            _tell(on_progress, path, "hash", done, max(size, done))
    finally:
        file.close()
    if done == 0:
        _tell(on_progress, path, "hash", 0, 0)
    return pb.Artifact(digest=f"sha256:{state.hexdigest()}", size_bytes=done)


async def send(
    connection: Connection, path: Path, artifact: pb.Artifact, on_progress: OnProgress | None = None
) -> bool:
    """Uploads a file that `describe` has described; True when it was there before.

    Raises InvalidArgument when the file has changed since, and the last failure when ATTEMPTS streams in a row broke
    without progress.
    """
    failures, furthest = 0, -1
    with connection.open_blocking() as channel:
        while True:
            received = await _received(connection, artifact)
            if received is None:
                _tell(on_progress, path, "upload", artifact.size_bytes, artifact.size_bytes)
                return furthest < 0
            if received > furthest:
                failures, furthest = 0, received
            try:
                return await _stream(connection, channel, path, artifact, received, on_progress)
            except _BROKEN as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                await asyncio.sleep(_pause(error, failures))


async def _received(connection: Connection, artifact: pb.Artifact) -> int | None:
    """Bytes that have arrived, None when all have. A registry may also answer that it knows nothing."""
    request = pb.GetArtifactRequest(digest=artifact.digest)
    try:
        answer = await connection.call(connection.stubs.artifacts.GetArtifact, request, retries=ATTEMPTS)
    except NotFound:
        return 0
    return None if answer.complete else answer.received_bytes


async def _stream(
    connection: Connection,
    channel: grpc.Channel,
    path: Path,
    artifact: pb.Artifact,
    offset: int,
    on_progress: OnProgress | None,
) -> bool:
    """One stream from `offset` to the end; True when the content was there before."""
    loop = asyncio.get_running_loop()
    failure: list[Exception] = []

    def on_loop(function: Callable[..., None], *arguments: Any) -> None:
        # The loop may have ended by the time that a cancelled call ends.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function, *arguments)

    def told(done: int) -> None:
        on_loop(_tell, on_progress, path, "upload", done, artifact.size_bytes)

    def messages() -> Iterator[pb.UploadArtifactRequest]:
        # gRPC turns an exception of its request iterator into one of its own: kept here, raised below.
        try:
            yield from _messages(path, artifact, offset, told)
        except Exception as error:
            failure.append(error)

    ended = asyncio.Event()
    # No deadline: a file may be large. A peer that falls silent is noticed by keepalive.
    stub = models_pb2_grpc.ArtifactServiceStub(channel)
    call = stub.UploadArtifact.future(messages(), metadata=tuple(connection.headers()))
    call.add_done_callback(lambda _: on_loop(ended.set))
    try:
        await ended.wait()
    finally:
        call.cancel()
    if failure:
        raise failure[0]
    with raising():
        answer = call.result()
    _tell(on_progress, path, "upload", artifact.size_bytes, artifact.size_bytes)
    return answer.existed


def _messages(
    path: Path, artifact: pb.Artifact, offset: int, told: Callable[[int], None]
) -> Iterator[pb.UploadArtifactRequest]:
    header = pb.UploadHeader(digest=artifact.digest, size_bytes=artifact.size_bytes, offset=offset)
    yield pb.UploadArtifactRequest(header=header)
    done = offset
    with path.open("rb") as file:
        file.seek(offset)
        while done < artifact.size_bytes:
            data = file.read(min(CHUNK_BYTES, artifact.size_bytes - done))
            if not data:
                raise InvalidArgument(f"{path.name} became shorter while it was uploaded")
            yield pb.UploadArtifactRequest(data=data)
            # The next message is asked for when this one is on its way.
            done += len(data)
            if done < artifact.size_bytes:
                told(done)


def _hash_some(file: BinaryIO, state: hashlib._Hash) -> int:
    data = file.read(HASH_BYTES)
    state.update(data)
    return len(data)


def _pause(error: PenstockError, failures: int) -> float:
    return max(error.retry_after or 0.0, min(2.0, 0.1 * 2.0**failures))


def _tell(on_progress: OnProgress | None, path: Path, step: str, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(Progress(path.name, step, done, total))
