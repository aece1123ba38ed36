"""Artifacts by the sha256 of their content, in a local folder.

    blobs/ab/cdef...     complete, verified, never changed      partial/abcdef...    received so far, resumable
    locks/ab             held while something of blobs/ab is put, claimed or removed

What is under blobs/ is complete: a file gets there by one rename, after its digest was checked and it was synced. One
writer per digest at a time, across processes (flock). Paths are built from the 64 hex digits of a checked digest only.

A file's time says when somebody last asked for it in order to name it (`claim`). Who collects what nobody names leaves
what was claimed not long ago, so a name may be written after the claim without any lock over files and database.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from penstock import names
from penstock.errors import InvalidArgument, NotFound, TooLarge
from penstock.v1.models_pb2 import Artifact

from .disk import CHUNK, full, locked, said_when_full, sync
from .threads import Threads
from .upload import Upload

PATIENCE: Final = 10.0
"""Seconds to wait for another registry that is at the same folder of blobs, which takes it no time."""
_REST: Final = re.compile(r"[0-9a-f]{62}")


@dataclass(frozen=True, slots=True)
class Stat:
    """How much of an artifact is here. received: the whole size when complete."""

    complete: bool
    received: int


@dataclass(frozen=True, slots=True)
class Blob:
    """A complete artifact. claimed: when somebody last wanted it, in seconds of the store's own clock."""

    digest: str
    size: int
    claimed: float


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
        """How much of it is here; claims it when it is complete."""

    def writer(self, digest: str, size: int, offset: int) -> AbstractAsyncContextManager[BlobWriter]:
        """Opens an upload at `offset`, which must equal what was received.

        Raises Conflict when it does not, Unavailable while another writer is at it, ResourceExhausted without room.
        """

    def read(self, digest: str, offset: int = 0) -> AsyncGenerator[bytes, None]:
        """The content from `offset` on, in chunks of at most CHUNK bytes; raises NotFound, InvalidArgument."""

    def claim(self, digest: str) -> int:
        """Size of a complete artifact, which from now on stays for as long as a claim lasts. Whoever is about to write
        its name into the database claims it before. Raises NotFound. Blocking."""

    def peek(self, digest: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; raises NotFound. Blocking."""

    def keep(self, data: bytes) -> str:
        """Stores a small artifact at once, claimed, and returns its digest. Blocking."""

    def copy_out(self, digest: str, path: Path) -> None:
        """Writes the content into a new file that is the caller's own; raises NotFound. Blocking."""

    def copy_in(self, path: Path) -> Artifact:
        """Stores and claims the content of a regular file that somebody else may still write to: what is stored has its
        digest.

        Raises InvalidArgument for anything but a regular file. Blocking.
        """

    def now(self) -> float:
        """The clock of `Blob.claimed`, in seconds. Blocking."""

    def shards(self) -> Iterator[list[Blob]]:
        """Everything that is complete, in parts that fit into memory. Blocking."""

    def remove(self, digests: Iterable[str], before: float) -> set[str]:
        """Removes those that nobody has claimed since `before`; which that were. Blocking."""

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
        self._locks = root / "locks"
        self._threads = threads
        self._max_bytes = max_bytes
        self._spare_bytes = spare_bytes
        self._reserved: dict[int, int] = {}
        self._reserving = threading.Lock()
        for folder in (self._blobs, self._partial, self._locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def stat(self, digest: str) -> Stat:
        return await self._threads.run(self._stat, digest)

    @asynccontextmanager
    async def writer(self, digest: str, size: int, offset: int) -> AsyncIterator[Upload]:
        if not 0 <= size <= self._max_bytes:
            raise TooLarge(f"header.size_bytes: {size} is more than the {self._max_bytes} bytes of an artifact")
        writer = Upload(self, self._threads, digest, size)
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

    def claim(self, digest: str) -> int:
        with self._locked(digest):
            if (size := self._touched(self._blob(digest))) is None:
                raise _not_here(digest)
            return size

    def peek(self, digest: str, offset: int, length: int) -> bytes:
        descriptor = self._open(digest)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def keep(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        with suppress(NotFound):
            self.claim(digest)
            return digest
        path = self._partial / f"keep-{secrets.token_hex(16)}"
        try:
            with said_when_full():
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                with open(descriptor, "wb") as file:
                    file.write(data)
                self.publish(path, digest)
        finally:
            path.unlink(missing_ok=True)
        return digest

    def copy_out(self, digest: str, path: Path) -> None:
        descriptor = self._open(digest)
        with open(descriptor, "rb") as source, said_when_full():
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
                with said_when_full():
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

    def now(self) -> float:
        path = self._partial / f"clock-{secrets.token_hex(16)}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            return os.fstat(descriptor).st_mtime  # A file server has a clock of its own.
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)

    def shards(self) -> Iterator[list[Blob]]:
        for folder in sorted(path for path in self._blobs.iterdir() if path.is_dir()):
            found = []
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if _REST.fullmatch(entry.name):
                            status = entry.stat(follow_symlinks=False)
                            found.append(Blob(f"sha256:{folder.name}{entry.name}", status.st_size, status.st_mtime))
            yield found

    def remove(self, digests: Iterable[str], before: float) -> set[str]:
        removed = set()
        for digest in digests:
            path = self._blob(digest)
            with suppress(FileNotFoundError), self._locked(digest):
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed.add(digest)
        return removed

    async def sweep(self, max_age: float) -> int:
        return await self._threads.run(self._sweep, max_age)

    # --- for the writer -----------------------------------------------------------------------------------------------

    def partial(self, digest: str) -> Path:
        """Where an upload of that digest is collected."""
        return self._partial / _hex(digest)

    def publish(self, path: Path, digest: str) -> None:
        """Moves a finished file to its place: synced first, then by one rename, then the folders are synced. Where it
        is already, that one is claimed and this one goes."""
        target = self._blob(digest)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        sync(path, os.O_RDONLY)
        with self._locked(digest):
            if self._touched(target) is not None:
                path.unlink()
                return
            os.utime(path)  # Its last byte may have come long ago.
            path.rename(target)
        for folder in (target.parent, self._blobs, self._partial):
            sync(folder, os.O_RDONLY | os.O_DIRECTORY)

    def reserve(self, owner: int, remaining: int) -> None:
        """Keeps room for the rest of an upload; raises ResourceExhausted when the disk has not enough for all."""
        with self._reserving:
            disk = os.statvfs(self._partial)
            others = sum(room for key, room in self._reserved.items() if key != owner)
            if disk.f_bavail * disk.f_frsize - others - remaining < self._spare_bytes:
                raise full()
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

    def _locked(self, digest: str) -> AbstractContextManager[None]:
        return locked(self._locks / _hex(digest)[:2], PATIENCE)

    @staticmethod
    def _touched(path: Path) -> int | None:
        """The file's size, its time being now; None where it is not. Under its lock."""
        try:
            os.utime(path)
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def _stat(self, digest: str) -> Stat:
        with suppress(NotFound):
            return Stat(True, self.claim(digest))
        try:
            return Stat(False, self.partial(digest).stat().st_size)
        except FileNotFoundError:
            # The rename may have come between the two looks.
            with suppress(NotFound):
                return Stat(True, self.claim(digest))
            return Stat(False, 0)

    def _open(self, digest: str) -> int:
        try:
            return os.open(self._blob(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _not_here(digest) from None

    def _sweep(self, max_age: float) -> int:
        removed = 0
        oldest = self.now() - max_age
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


def _hex(digest: str) -> str:
    return names.digest(digest).removeprefix("sha256:")


def _not_here(digest: str) -> NotFound:
    return NotFound(f"artifact {digest} is not here; upload it first")
