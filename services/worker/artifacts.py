"""Artifacts by the hash of their content: pulled once, verified while they stream in, kept in a folder of this worker.

A file under its final name is complete and was verified: bytes go to `<hex>.part`, are hashed as they are written, and
only after fsync does the file get its name. An interrupted pull goes on where it stopped; content with another hash is
discarded. What lies in the cache is served without a registry. It is hashed again at its first use after a restart,
since disks and people change files; after that, size, inode and modification time are compared, which costs nothing.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from penstock import names, signals
from penstock.errors import Internal, PenstockError, ResourceExhausted, Unavailable
from penstock.kit.log import get_logger
from penstock.kit.metrics import counter, gauge

from .tasks import in_thread

CHUNK: Final = 1 << 20
PULLS: Final = 4
"""Artifacts that are pulled at a time. A worker that is started with a hundred replicas, beside others that are, does
not fall upon the registry with all of them at once; what is pulled first can be loaded meanwhile."""

log = get_logger()


class Source(Protocol):
    """Where bytes come from: registry.Registries."""

    def download(self, digest: str, offset: int) -> AsyncGenerator[bytes, None]: ...


class CacheInUse(Exception):
    """Another process works with the folder."""


@dataclass(slots=True)
class _Entry:
    """An artifact that somebody asks for or uses: one at a time pulls it, the others wait and find it there."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    holders: int = 0


class Artifacts:
    """The cache of one worker.

    Args:
        folder: belongs to this process alone; `open` refuses one that another process has.
        capacity_bytes: what is not in use is thrown out, longest unused first, when the cache grows beyond it.
            What is in use is never touched, even if that alone is more.
    """

    def __init__(self, folder: str, source: Source, *, capacity_bytes: int) -> None:
        # Absolute: the engines' processes need not share our working directory.
        self._folder = Path(folder).absolute() / "sha256"
        self._source = source
        self._capacity = capacity_bytes
        self._entries: dict[str, _Entry] = {}
        self._turns = asyncio.Semaphore(PULLS)
        self._verified: dict[str, tuple[int, int, int]] = {}
        self._lock_file: BinaryIO | None = None
        self._downloaded = counter(signals.WORKER_DOWNLOADED_BYTES)
        self._size = gauge(signals.WORKER_CACHE_BYTES)

    def open(self) -> None:
        """Takes the folder. Raises CacheInUse."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock_file = (self._folder.parent / "lock").open("wb")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock_file.close()
            raise CacheInUse("cache_dir belongs to a worker that runs; give each worker its own") from None
        self._lock_file = lock_file
        self._size.set(sum(size for _, size, _ in self._files()))

    def close(self) -> None:
        """Leaves the folder."""
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    @property
    def in_use(self) -> int:
        """How many artifacts somebody asks for or uses now."""
        return len(self._entries)

    async def has(self, digest: str) -> bool:
        """Whether something lies under that name here; whether it is good is seen when it is held."""
        return await in_thread((self._folder / names.digest(digest).removeprefix("sha256:")).exists)

    @asynccontextmanager
    async def held(self, digest: str, *, size: int | None = None, limit: int | None = None) -> AsyncIterator[Path]:
        """The artifact's file, which stays while the context lasts.

        size: bytes that it must have; limit: bytes that it may have at most, where the size is not known.
        Raises NotFound, Unavailable (no registry, and not cached), ResourceExhausted (too large, disk full), Internal
        (the content does not match the digest).
        """
        name = names.digest(digest).removeprefix("sha256:")
        entry = self._entries.setdefault(name, _Entry())
        entry.holders += 1
        try:
            async with entry.lock:
                path = self._folder / name
                if not await in_thread(self._usable, path):
                    async with self._turns:
                        await self._pull(digest, path, size, size if size is not None else limit or CHUNK)
            yield path
        finally:
            entry.holders -= 1
            if not entry.holders:
                del self._entries[name]

    def _usable(self, path: Path) -> bool:
        """Whether the file is there and holds what its name says. Runs in a thread."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        if self._verified.get(path.name) != _stamp(found):
            if _hash_of(path) != path.name:
                log.error("cached_artifact_damaged", digest=path.name)
                path.unlink()
                self._verified.pop(path.name, None)
                return False
            self._verified[path.name] = _stamp(found)
        # The access time is the time of last use; the modification time stays, it is part of the stamp.
        os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
        return True

    async def _pull(self, digest: str, path: Path, size: int | None, limit: int) -> None:
        """Downloads, as long as each try brings the end nearer."""
        if size is not None and size > self._capacity:
            raise ResourceExhausted(
                f"an artifact of {size} bytes does not fit the worker's cache of {self._capacity} bytes"
            )
        part = path.with_name(path.name + ".part")
        await in_thread(self._make_room, size or 0, part.name)
        try:
            while not await self._receive(digest, part, size, limit):
                pass
            await in_thread(self._finish, part, path)
        except OSError as problem:
            if problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhausted("the worker's disk is full") from None
            raise Internal("the worker cannot write its cache", detail=repr(problem)) from None
        log.info("artifact_pulled", digest=digest, size_bytes=self._verified[path.name][0])

    async def _receive(self, digest: str, part: Path, size: int | None, limit: int) -> bool:
        """One try, from where the last one stopped. True when everything is there and has the right hash; False when
        it broke off after new bytes."""
        hasher = hashlib.sha256()
        broken: PenstockError | None = None
        with await in_thread(part.open, "ab") as file:
            start = received = await in_thread(_feed, part, hasher)
            if received <= limit:
                try:
                    async with aclosing(self._source.download(digest, received)) as stream:
                        async for data in stream:
                            received += len(data)
                            if received > limit:
                                break
                            await in_thread(_append, file, hasher, data)
                            self._downloaded.inc(len(data))
                except Unavailable as error:
                    broken = error
        if received > limit:
            await in_thread(part.unlink)
            raise Internal(f"the artifact is larger than {limit} bytes; what came of it was discarded")
        if broken is None and size is not None and received < size:
            broken = Unavailable(f"the registry broke off after {received} of {size} bytes")
        if broken is not None:
            if received > start:
                return False
            raise broken
        if f"sha256:{hasher.hexdigest()}" != digest:
            await in_thread(part.unlink)
            raise Internal("the content of an artifact did not match its digest; it was discarded", detail=digest)
        return True

    def _finish(self, part: Path, path: Path) -> None:
        """Makes a verified file permanent under its name, read-only. Runs in a thread."""
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o444)
        part.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._verified[path.name] = _stamp(path.stat())
        self._size.set(sum(size for _, size, _ in self._files()))

    def _make_room(self, wanted: int, own: str) -> None:
        """Throws out what is not in use, longest unused first, until `wanted` more bytes fit. Runs in a thread."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total + wanted <= self._capacity:
                return
            if path.name != own and path.name.removesuffix(".part") not in self._entries:
                path.unlink(missing_ok=True)
                self._verified.pop(path.name, None)
                total -= size
                log.info("artifact_evicted", digest=path.name, size_bytes=size)

    def _files(self) -> list[tuple[int, int, Path]]:
        """(last use, size, path) of everything in the cache, what has begun to arrive included."""
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_atime_ns, status.st_size, path))
        return found


def _append(file: BinaryIO, hasher: Any, data: bytes) -> None:
    file.write(data)
    hasher.update(data)


def _feed(path: Path, hasher: Any) -> int:
    """Hashes what a file holds; answers its size."""
    size = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            hasher.update(data)
            size += len(data)
    return size


def _hash_of(path: Path) -> str:
    hasher = hashlib.sha256()
    _feed(path, hasher)
    return hasher.hexdigest()


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_ino, status.st_mtime_ns
