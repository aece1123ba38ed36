"""The public port of a process on the data plane.

Inference is served by the project's own transport (penstock/wire). Every other call (management, health, reflection)
is passed on, as it is, to the process's grpcio server, which listens on a unix socket in a folder that nobody else may
enter; its gate authenticates those by the caller's own credential.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from penstock import signals
from penstock.kit.identity import Authenticator
from penstock.kit.log import get_logger
from penstock.kit.metrics import gauge
from penstock.kit.tls import Certificates
from penstock.wire.client import Peer
from penstock.wire.server import KINDS, Forwarding, Limits, Method, Server, bound_unix

EVERYTHING: Final = ("/",)
_FOLDER_BYTES: Final = 80


class Front:
    """Bound when made, so that the port is known; accepts from `start`.

    limits: what one connection may cost; certificates: where there is one to show, the port speaks TLS.
    Raises OSError when the port cannot be taken.
    """

    def __init__(
        self, host: str, port: int, authenticator: Authenticator, limits: Limits, certificates: Certificates
    ) -> None:
        self._authenticator = authenticator
        self._certificates = certificates
        self._limits = limits
        self._methods: dict[str, Method] = {}
        self._server: Server | None = None
        self._peer: Peer | None = None
        self._socket = _bound(host, port)
        self._unix: socket.socket | None = None
        self._folder = _private_folder()
        self.inner = f"unix:{self._folder / 'control.sock'}"

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self._socket.getsockname()[1])

    def add(self, methods: Mapping[str, Method]) -> None:
        """Adds methods by full path; before `start`."""
        self._methods.update(methods)

    def listen_unix(self) -> str:
        """Listens on a unix socket too, for processes of this user on this host; before `start`.

        Returns its path, empty where it cannot be had: whoever would use it has the port.
        """
        try:
            self._unix, path = bound_unix(str(self._folder))
        except OSError as problem:
            get_logger().warning("unix_socket_unavailable", problem=str(problem))
            return ""
        return path

    async def start(self) -> None:
        """Accepts connections; the grpcio server behind must have started."""
        self._peer = Peer(self.inner)
        self._server = Server(
            Forwarding(self._methods, self._peer, EVERYTHING),
            authenticate=self._authenticator.authenticate,
            limits=self._limits,
        )
        for kind in KINDS:
            gauge(signals.CONNECTIONS).labels(kind).set_function(partial(self._server.connected.__getitem__, kind))
        await self._server.start_on(self._socket, tls=self._certificates.server("h2"))
        if self._unix is not None:
            await self._server.start_on(self._unix)

    async def drain(self, seconds: float) -> None:
        """Stops accepting and waits for what is in flight; cuts off what is left after `seconds`."""
        if self._server is not None:
            await self._server.drain(seconds)

    async def close(self) -> None:
        """Ends everything and leaves nothing behind. May be called more than once."""
        if self._server is not None:
            await self._server.close()
        if self._peer is not None:
            await self._peer.close()
        self._socket.close()
        if self._unix is not None:
            self._unix.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _private_folder() -> Path:
    """A new folder that nobody else may enter. A socket's address has 107 bytes (unix(7)), and the folder for temporary
    files may be longer."""
    made = Path(tempfile.mkdtemp(prefix="penstock-"))
    if len(os.fsencode(made)) <= _FOLDER_BYTES:
        return made
    made.rmdir()
    return Path(tempfile.mkdtemp(prefix="penstock-", dir="/tmp"))


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, because asyncio switches Nagle's delay off only for sockets that are.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host.strip("[]"), port))
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made
