"""The regions that callers have registered, kept where every process of one gateway sees them: in a folder.

A record is a symbolic link whose target is the record's text: it is made whole or not at all, fails where there is one
already, and is read by one system call, so no process ever sees half of one or an old one. Nobody follows the links.
Names are per owner: two callers may use the same name, and neither learns of the other's. Look-ups take no lock.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from penstock import regions
from penstock.errors import AlreadyExists, ResourceExhausted
from penstock.regions import Region

MAX_PER_OWNER: Final = 1024
MAX_IN_ALL: Final = 4096


class RegionTable:
    """The table of one gateway service.

    runtime_dir: a folder of ours that the service's processes share, whose owner removes it. Raises ValueError for one
    that others could write to, OSError where none can be made.
    """

    def __init__(self, runtime_dir: Path, *, max_per_owner: int = MAX_PER_OWNER, max_in_all: int = MAX_IN_ALL):
        folder = runtime_dir / "regions"
        with suppress(FileExistsError):
            os.makedirs(folder, 0o700)
        found = os.stat(folder, follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError(f"runtime_dir: {folder} must be a folder that nobody else may enter")
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._max_per_owner, self._max_in_all = max_per_owner, max_in_all
        self._read: dict[str, Region] = {}

    def close(self) -> None:
        """Lets go of the table. May be called again."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def add(self, owner: str, region: Region) -> None:
        """Raises AlreadyExists, ResourceExhausted when the owner or all owners together have too many."""
        place = _place(owner, region.name)
        with self._locked():
            there = os.listdir(self._folder)
            if place in there:
                raise AlreadyExists(f"shared memory region {region.name!r} is registered already; unregister it first")
            mine = sum(entry.startswith(_prefix(owner)) for entry in there)
            if mine >= self._max_per_owner or len(there) >= self._max_in_all:
                raise ResourceExhausted(f"too many shared memory regions are registered, {mine} of them by this caller")
            os.symlink(regions.pack([region]), place, dir_fd=self._folder)

    def find(self, owner: str, name: str) -> Region | None:
        """The owner's region of that name."""
        return self._region(_place(owner, name))

    def all(self, owner: str) -> list[Region]:
        """The owner's regions, by name."""
        places = [entry for entry in os.listdir(self._folder) if entry.startswith(_prefix(owner))]
        found = [self._region(place) for place in places]
        return sorted((each for each in found if each is not None), key=lambda each: each.name)

    def remove(self, owner: str, name: str) -> None:
        """Takes a region out; what is not there is fine."""
        with suppress(FileNotFoundError):
            os.unlink(_place(owner, name), dir_fd=self._folder)

    def _region(self, place: str) -> Region | None:
        try:
            text = os.readlink(place, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        region = self._read.get(text)
        if region is None:
            if len(self._read) >= self._max_in_all:
                self._read.clear()
            (region,) = regions.unpack(text).values()
            self._read[text] = region
        return region

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other processes from adding meanwhile, for the counts' sake."""
        fcntl.flock(self._folder, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._folder, fcntl.LOCK_UN)


@lru_cache(MAX_IN_ALL)
def _place(owner: str, name: str) -> str:
    """The record's file name; nothing that a caller chose stands in it as such."""
    return _prefix(owner) + hashlib.sha256(name.encode()).hexdigest()[:32]


@lru_cache(MAX_IN_ALL)
def _prefix(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:32] + "-"
