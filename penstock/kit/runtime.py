"""The private folder of a running service: unix sockets and what else its processes share while they live.

Whoever uses a folder holds a shared lock on it, which the system lets go when the process ends, however it ends. So a
folder whose lock can be taken alone belongs to nobody alive, and the next start of the same user removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

_PREFIX: Final = "penstock-run-"
_LONGEST: Final = 60
"""Bytes of the parent's name: a unix socket's address has 107 (unix(7)), and the folder for temporary files may lie
deeper than a socket in it could."""


class RuntimeFolder:
    """A folder that only this user may enter. Use `make` or `join`; `close` ends the use of it."""

    def __init__(self, path: Path, lock: int, *, own: bool) -> None:
        self.path = path
        self._lock = lock
        self._own = own

    @classmethod
    def make(cls) -> RuntimeFolder:
        """A new one; removes those of this user that nobody uses any more. Raises OSError."""
        sweep()
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
            # Another's sweep may come between any two of these steps; then there is nothing of that name any more.
            with suppress(FileNotFoundError):
                lock = _opened(path)
                fcntl.flock(lock, fcntl.LOCK_SH)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), path.stat()):
                        return cls(path, lock, own=True)
                os.close(lock)

    @classmethod
    def join(cls, path: Path) -> RuntimeFolder:
        """The folder of the process that started this one. Raises OSError."""
        lock = _opened(path)
        fcntl.flock(lock, fcntl.LOCK_SH)
        return cls(path, lock, own=False)

    def close(self) -> None:
        """Removes the folder if this process made it. May be called more than once."""
        if self._lock >= 0:
            if self._own:
                shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep() -> None:
    """Removes this user's folders that no process uses."""
    for path in _parent().glob(f"{_PREFIX}*"):
        with suppress(OSError):
            lock = _opened(path)
            try:
                found = os.fstat(lock)
                if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _parent() -> Path:
    usual = tempfile.gettempdir()
    return Path(usual if len(os.fsencode(usual)) <= _LONGEST else "/tmp")


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
