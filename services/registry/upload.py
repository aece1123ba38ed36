"""One upload into the local folder: hashed while it is written, resumed where it broke off, shown when it is right."""

from __future__ import annotations

import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

from penstock.errors import Conflict, InvalidArgument, Unavailable

from .disk import CHUNK, said_when_full
from .threads import Threads

if TYPE_CHECKING:
    from .blobs import LocalBlobStore


class Upload:
    """Writes a partial file while hashing. Every blocking method runs in a thread, one at a time."""

    def __init__(self, store: LocalBlobStore, threads: Threads, digest: str, size: int) -> None:
        self._store = store
        self._threads = threads
        self._digest = digest
        self._size = size
        self._path = store.partial(digest)
        self._file = -1
        self._received = 0
        self._hash = hashlib.sha256()

    async def write(self, data: bytes) -> None:
        await self._threads.run(self._write, data)

    async def commit(self) -> None:
        await self._threads.run(self._commit)

    def open(self, offset: int) -> None:
        self._file = self._locked()
        received = os.fstat(self._file).st_size
        if received > self._size:
            # Whoever sent that much meant another size; neither can be right about the same content.
            self._discard()
            received = 0
        if offset != received:
            raise Conflict(
                f"header.offset: is {offset}, but {received} bytes were received; go on from there",
                field="header.offset",
            )
        with said_when_full():
            self._store.reserve(id(self), self._size - received)
        while chunk := os.pread(self._file, CHUNK, self._received):
            self._hash.update(chunk)
            self._received += len(chunk)

    def close(self) -> None:
        """Lets go of the file; what was received stays, unless that is nothing."""
        self._store.release(id(self))
        if self._file < 0:
            return
        if self._path_is_ours() and os.fstat(self._file).st_size == 0:
            self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1

    def _locked(self) -> int:
        while True:
            with said_when_full():
                self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._file)
                self._file = -1
                raise Unavailable(
                    "this artifact is being uploaded by somebody else at the moment; try again later", retry_after=1.0
                ) from None
            # The last writer may have moved or removed the file between open and lock.
            if self._path_is_ours():
                return self._file
            os.close(self._file)

    def _path_is_ours(self) -> bool:
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._file)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _write(self, data: bytes) -> None:
        if self._received + len(data) > self._size:
            self._discard()
            raise InvalidArgument(
                f"header.size_bytes: more than the announced {self._size} bytes were sent", field="header.size_bytes"
            )
        view = memoryview(data)
        while view:
            with said_when_full():
                written = os.pwrite(self._file, view, self._received)
            self._hash.update(view[:written])
            self._received += written
            self._store.reserve_less(id(self), written)
            view = view[written:]

    def _commit(self) -> None:
        if self._received != self._size:
            # Kept, not discarded: to a server of grpc.aio a broken stream may look like one that has ended.
            raise InvalidArgument(
                f"header.size_bytes: {self._size} bytes were announced, {self._received} were sent; go on from there",
                field="header.size_bytes",
            )
        if f"sha256:{self._hash.hexdigest()}" != self._digest:
            self._discard()
            raise InvalidArgument(
                "header.digest: the content does not have this digest; it was discarded: upload it again",
                field="header.digest",
            )
        with said_when_full():
            self._store.publish(self._path, self._digest)

    def _discard(self) -> None:
        os.ftruncate(self._file, 0)
        self._received = 0
        self._hash = hashlib.sha256()
