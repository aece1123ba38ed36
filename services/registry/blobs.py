"""Artifacts by the sha256 of their content, in a local folder.

    blobs/ab/cdef...     complete, verified, never changed      partial/abcdef...    received so far, resumable

What is under blobs/ is complete: a file gets there by one rename, after its digest was checked and it was synced. One
writer per digest at a time, across processes (flock). Paths are built from the 64 hex digits of a checked digest only.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from penstock import names
from penstock.errors import Conflict, InvalidArgument, NotFound, PenstockError, ResourceExhausted, TooLarge, Unavailable
from penstock.v1.models_pb2 import Artifact

from .threads import Threads

CHUNK: Final = 1 << 20
"""Bytes of one read."""


@dataclass(frozen=True, slots=True)
class Stat:
    """How much of an artifact is here. received: the whole size when complete."""

    complete: bool
    received: int


class BlobWriter(Protocol):
    """An upload under way. Leaving its context without `commit` keeps what was received, for a later writer."""

    async def write(self, data: bytes) -> None:
        """Appends. Raises InvalidArgument beyond the announced size, ResourceExhausted when the disk is full."""

    async def commit(self) -> None:
        """Makes the artifact visible.

        Raises InvalidArgument when bytes are missing, which may follow later, and when the digest does not match, which
        discards what was received.
        """


class BlobStore(Protocol):
    """Where artifacts live. tests/contract/test_blobs.py holds for every implementation."""

    async def stat(self, digest: str) -> Stat:
        """How much of it is here."""

    def writer(self, digest: str, size: int, offset: int) -> AbstractAsyncContextManager[BlobWriter]:
        """Opens an upload at `offset`, which must equal what was received.

        Raises Conflict when it does not, Unavailable while another writer is at it, ResourceExhausted without room.
        """

    def read(self, digest: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The content from `offset` on, in chunks of at most CHUNK bytes; raises NotFound, InvalidArgument."""

    def size(self, digest: str) -> int | None:
        """Size when complete, None otherwise. Blocking."""

    def peek(self, digest: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; raises NotFound. Blocking."""

    def keep(self, data: bytes) -> str:
        """Stores a small artifact at once and returns its digest. Blocking."""

    def copy_out(self, digest: str, path: Path) -> None:
        """Writes the content into a new file that is the caller's own; raises NotFound. Blocking."""

    def copy_in(self, path: Path) -> Artifact:
        """Stores the content of a regular file that somebody else may still write to: what is stored has its digest.

        Raises InvalidArgument for anything but a regular file. Blocking.
        """

    async def sweep(self, max_age: float) -> int:
        """Removes partial uploads that nobody has touched for `max_age` seconds; how many."""


class LocalBlobStore:
    """A BlobStore in a folder of the local file system.

    Args:
        root: the folder; made if missing. Several processes may share it.
        threads: where file work runs.
        max_bytes: largest artifact.
        spare_bytes: room that stays free on the disk, so that the database can go on.
    """

    def __init__(self, root: Path, threads: Threads, *, max_bytes: int = 1 << 40, spare_bytes: int = 64 << 20) -> None:
        self._blobs = root / "blobs"
        self._partial = root / "partial"
        self._threads = threads
        self._max_bytes = max_bytes
        self._spare_bytes = spare_bytes
        self._reserved: dict[int, int] = {}
        self._reserving = threading.Lock()
        for folder in (self._blobs, self._partial):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def stat(self, digest: str) -> Stat:
        return await self._threads.run(self._stat, digest)

    @asynccontextmanager
    async def writer(self, digest: str, size: int, offset: int) -> AsyncIterator[_LocalWriter]:
        if not 0 <= size <= self._max_bytes:
            raise TooLarge(f"header.size_bytes: {size} is more than the {self._max_bytes} bytes of an artifact")
        writer = _LocalWriter(self, self._threads, digest, size)
        try:
            await self._threads.run(writer.open, offset)
            yield writer
        finally:
            await self._threads.run(writer.close)

    async def read(self, digest: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        descriptor = await self._threads.run(self._open, digest)
        try:
            size = os.fstat(descriptor).st_size
            if not 0 <= offset <= size:
                raise InvalidArgument(
                    f"offset: {offset} is not within the {size} bytes of the artifact", field="offset"
                )
            while chunk := await self._threads.run(os.pread, descriptor, CHUNK, offset):
                offset += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    def size(self, digest: str) -> int | None:
        try:
            return self._blob(digest).stat().st_size
        except FileNotFoundError:
            return None

    def peek(self, digest: str, offset: int, length: int) -> bytes:
        descriptor = self._open(digest)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def keep(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.size(digest) is not None:
            return digest
        path = self._partial / f"keep-{secrets.token_hex(16)}"
        try:
            with _full_disk():
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(data)
                self.publish(path, digest)
        finally:
            path.unlink(missing_ok=True)
        return digest

    def copy_out(self, digest: str, path: Path) -> None:
        descriptor = self._open(digest)
        with open(descriptor, "rb") as source, _full_disk():
            target = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(target, "wb") as file:
                shutil.copyfileobj(source, file, CHUNK)

    def copy_in(self, path: Path) -> Artifact:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument("a file of the step is not there, or is a link", detail=repr(error)) from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(descriptor)
            raise InvalidArgument("a file of the step is a link, or no file")
        copy, hashed = self._partial / f"copy-{secrets.token_hex(16)}", hashlib.sha256()
        with open(descriptor, "rb") as source:
            try:
                with _full_disk():
                    target = os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                    with open(target, "wb") as file:
                        while chunk := source.read(CHUNK):
                            hashed.update(chunk)
                            file.write(chunk)
                        size = file.tell()
                    digest = f"sha256:{hashed.hexdigest()}"
                    self.publish(copy, digest)
            finally:
                copy.unlink(missing_ok=True)
        return Artifact(digest=digest, size_bytes=size)

    async def sweep(self, max_age: float) -> int:
        return await self._threads.run(self._sweep, max_age)

    # --- for the writer -----------------------------------------------------------------------------------------------

    def partial(self, digest: str) -> Path:
        """Where an upload of that digest is collected."""
        return self._partial / _hex(digest)

    def publish(self, path: Path, digest: str) -> None:
        """Moves a finished file to its place: synced first, then by one rename, then the folders are synced."""
        target = self._blob(digest)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        _sync(path, os.O_RDONLY)
        path.rename(target)
        for folder in (target.parent, self._blobs, self._partial):
            _sync(folder, os.O_RDONLY | os.O_DIRECTORY)

    def reserve(self, owner: int, remaining: int) -> None:
        """Keeps room for the rest of an upload; raises ResourceExhausted when the disk has not enough for all."""
        with self._reserving:
            disk = os.statvfs(self._partial)
            others = sum(room for key, room in self._reserved.items() if key != owner)
            if disk.f_bavail * disk.f_frsize - others - remaining < self._spare_bytes:
                raise _disk_full()
            self._reserved[owner] = remaining

    def reserve_less(self, owner: int, written: int) -> None:
        """That much of the reserved room is used now."""
        with self._reserving:
            self._reserved[owner] = max(0, self._reserved[owner] - written)

    def release(self, owner: int) -> None:
        """Gives the room back."""
        with self._reserving:
            self._reserved.pop(owner, None)

    # --- blocking -----------------------------------------------------------------------------------------------------

    def _blob(self, digest: str) -> Path:
        hex_digits = _hex(digest)
        return self._blobs / hex_digits[:2] / hex_digits[2:]

    def _stat(self, digest: str) -> Stat:
        size = self.size(digest)
        if size is not None:
            return Stat(True, size)
        try:
            return Stat(False, self.partial(digest).stat().st_size)
        except FileNotFoundError:
            # The rename may have come between the two looks.
            size = self.size(digest)
            return Stat(size is not None, size or 0)

    def _open(self, digest: str) -> int:
        try:
            return os.open(self._blob(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"artifact {digest} is not here; upload it first") from None

    def _sweep(self, max_age: float) -> int:
        removed = 0
        oldest = time.time() - max_age  # File times are wall-clock times.
        for entry in list(os.scandir(self._partial)):
            with suppress(FileNotFoundError):
                if not entry.is_file(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_mtime > oldest:
                    continue
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(descriptor).st_mtime <= oldest:
                        os.unlink(entry.path)
                        removed += 1
                except BlockingIOError:
                    pass  # A writer is at it.
                finally:
                    os.close(descriptor)
        return removed


class _LocalWriter:
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
        with _full_disk():
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
            with _full_disk():
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
            with _full_disk():
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
        with _full_disk():
            self._store.publish(self._path, self._digest)

    def _discard(self) -> None:
        os.ftruncate(self._file, 0)
        self._received = 0
        self._hash = hashlib.sha256()


def _hex(digest: str) -> str:
    return names.digest(digest).removeprefix("sha256:")


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_full() -> PenstockError:
    return ResourceExhausted("the registry has no room for this artifact now; try again later", retry_after=60.0)


@contextmanager
def _full_disk() -> Iterator[None]:
    """Inside, a full disk or a used-up quota becomes ResourceExhausted."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full() from error
        raise
