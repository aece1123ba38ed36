"""Files of a folder that several registries share: locks that the kernel takes back, syncs, and a disk that is full."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from penstock.errors import PenstockError, ResourceExhausted, Unavailable

CHUNK: Final = 1 << 20
"""Bytes of one read."""
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Inside, nobody else of those who share the folder is inside for this file, which is made if missing. Blocking.

    patience: seconds to wait for whoever is; raises Unavailable after them.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        end, pause = time.monotonic() + patience, _FIRST_PAUSE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    text = "another registry is at this at the moment; try again later"
                    raise Unavailable(text, detail=str(path), retry_after=1.0) from None
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path, flags: int) -> None:
    """What was written to a file or folder is on the disk."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def full() -> PenstockError:
    """What an artifact is refused with that there is no room for."""
    return ResourceExhausted("the registry has no room for this artifact now; try again later", retry_after=60.0)


@contextmanager
def said_when_full() -> Iterator[None]:
    """Inside, a full disk or a used-up quota becomes ResourceExhausted."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full() from error
        raise
