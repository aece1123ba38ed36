"""The unix socket between two processes of one host: where it lies, and who is let in at either end.

A socket's name holds 128 random bits and its folder is entered by one user alone, so a path leads to the process that
announced it or to nothing: another host and another container have nothing there, and a process that has died refuses.
Each end asks the kernel whose process the other one is (SO_PEERCRED, unix(7)), and takes its own user and root.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
import uuid
from collections.abc import Callable
from typing import Any, Final

_NAME: Final = re.compile(r"hop-[0-9a-f]{32}\.sock")
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: process, user, group."""
_SEND_BYTES: Final = 1 << 20
"""Asked for, so that a large tensor crosses in few turns of the loop; the kernel gives at most net.core.wmem_max."""


def bound(folder: str) -> tuple[socket.socket, str]:
    """A bound socket in a folder that is private already, and its path. Raises OSError."""
    path = os.path.join(os.path.abspath(folder), f"hop-{uuid.uuid4().hex}.sock")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _through(folder, path, made.bind)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made, path


def connected(path: str) -> socket.socket:
    """A connection to such a socket, without blocking.

    Raises FileNotFoundError when it is not on this host, PermissionError when what is there is not a socket of ours,
    another OSError when nobody listens.
    """
    folder, name = os.path.split(path)
    if not _NAME.fullmatch(name) or not os.path.isabs(folder):
        raise PermissionError("no path of a process of ours")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        _through(folder, path, made.connect)
        if not trusted(made):
            raise PermissionError("the socket is another user's")
    except OSError:
        made.close()
        raise
    return made


def trusted(transport_socket: Any) -> bool:
    """Whether the other end of a unix socket is a process of our user, or of root."""
    _, user, _ = _CREDENTIALS.unpack(
        transport_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return user in (0, os.geteuid())


def prepare(transport_socket: Any) -> None:
    """Gives a unix connection room for large messages: it is not inherited, and does not grow by itself as TCP's."""
    if transport_socket.family == socket.AF_UNIX:
        transport_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)


def _through(folder: str, path: str, do: Callable[[str], None]) -> None:
    """Binds or connects by way of the open folder.

    What was looked at is what is used; and the path may be longer than the 107 bytes that a socket's address has
    (unix(7)).
    """
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(opened)
        if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError("the folder is not private")
        do(f"/proc/self/fd/{opened}/{os.path.basename(path)}")
    finally:
        os.close(opened)
