"""Ports that a process listens on: bound in time, so that numbers are known, and shared only with those meant to.

SO_REUSEPORT lets any process of the same user join a port without a word. `Reserved` is for the one that starts several
processes on one port: it says no to a second one, as a port that is not shared does by itself.
"""

from __future__ import annotations

import socket
from typing import Final

_CLAIM: Final = "\0penstock/port/{port}/{host}"
"""A unix socket without a file: it lives as long as its process, in the same network namespace as the port."""


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A TCP socket that is bound and does not listen yet. shared: others of this user may bind the same. Raises
    OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, because asyncio switches Nagle's delay off only for sockets that are.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((host.strip("[]"), port))
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def number_of(taken: socket.socket) -> int:
    """The port of a bound socket."""
    return int(taken.getsockname()[1])


def reached_at(host: str, advertise: str) -> str:
    """Where others find a process that listens on `host`: a wildcard is no address, this machine's name is."""
    return advertise or (socket.gethostname() if host in ("0.0.0.0", "::", "[::]") else host)


class Reserved:
    """A port for several processes of this one's making. Never listens itself. Raises OSError when it is in use.

    Two checks, because neither sees everything: a claim keeps out a second reservation, whose processes may not listen
    yet; listening once without sharing finds everybody who does listen, whatever options they took.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._held: list[socket.socket] = []
        try:
            with bound(host, port) as alone:
                alone.listen()
                self.port = number_of(alone)
                self._claim()
            self._held.append(bound(host, self.port, shared=True))
        except OSError:
            self.release()
            raise

    def socket(self) -> socket.socket:
        """One more socket on the port, bound and not listening. Raises OSError."""
        return bound(self._host, self.port, shared=True)

    def release(self) -> None:
        """Lets others have the port once nobody listens there any more. May be called more than once."""
        while self._held:
            self._held.pop().close()

    def _claim(self) -> None:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._held.append(claim)
        claim.bind(_CLAIM.format(port=self.port, host=self._host.strip("[]")))
