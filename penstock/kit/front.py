"""The public port of a process on the data plane.

Inference is served by the project's own transport (penstock/wire). Every other call (management, health, reflection)
is passed on, as it is, to the process's grpcio server, which listens on a unix socket in a folder that nobody else may
enter; its gate authenticates those by the caller's own credential.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from penstock import signals
from penstock.kit.identity import Authenticator
from penstock.kit.log import get_logger
from penstock.kit.metrics import gauge
from penstock.kit.ports import number_of
from penstock.kit.tls import Certificates
from penstock.wire.client import Peer
from penstock.wire.server import KINDS, Forwarding, Limits, Method, Server, bound_unix

EVERYTHING: Final = ("/",)
MAX_HELD: Final = 1 << 30
"""Request bytes that a service holds at a time, over all its connections."""
MAX_CONNECTIONS: Final = 10_000
"""Connections of a service."""


class Front:
    """Accepts from `start` on a socket that is bound already, and owns it.

    inner: path of the unix socket for the grpcio server. limits: what one connection may cost; certificates: where
    there is one to show, the port speaks TLS. share: processes of the service, each of which gets its part of the
    totals.
    """

    def __init__(
        self,
        bound: socket.socket,
        inner: Path,
        authenticator: Authenticator,
        limits: Limits,
        certificates: Certificates,
        *,
        share: int = 1,
    ) -> None:
        self._authenticator = authenticator
        self._certificates = certificates
        self._limits, self._share = limits, share
        self._methods: dict[str, Method] = {}
        self._server: Server | None = None
        self._peer: Peer | None = None
        self._socket = bound
        self._unix: socket.socket | None = None
        self.inner = f"unix:{inner}"

    @property
    def port(self) -> int:
        """The port that was taken."""
        return number_of(self._socket)

    def add(self, methods: Mapping[str, Method]) -> None:
        """Adds methods by full path; before `start`."""
        self._methods.update(methods)

    def listen_unix(self, folder: Path) -> str:
        """Listens on a unix socket too, for processes of this user on this host; before `start`. folder: private.

        Returns its path, empty where it cannot be had: whoever would use it has the port.
        """
        try:
            self._unix, path = bound_unix(str(folder))
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
            max_held=MAX_HELD // self._share,
            max_connections=MAX_CONNECTIONS // self._share,
        )
        for kind in KINDS:
            gauge(signals.CONNECTIONS).labels(kind).set_function(partial(self._server.connected.__getitem__, kind))
        await self._server.start_on(self._socket, tls=self._certificates.server("h2"))
        if self._unix is not None:
            await self._server.start_on(self._unix)

    def ask(self) -> None:
        """Asks every caller beyond this host for a sign of life."""
        if self._server is not None:
            self._server.ask()

    def reset_unanswered(self) -> int:
        """Ends the connections of those who gave none since, with everything that they asked for; returns how many."""
        return self._server.reset_unanswered() if self._server is not None else 0

    async def drain(self, seconds: float) -> None:
        """Stops accepting and waits for what is in flight; cuts off what is left after `seconds`."""
        if self._server is not None:
            await self._server.drain(seconds)

    async def close(self) -> None:
        """Ends everything. May be called more than once."""
        if self._server is not None:
            await self._server.close()
        if self._peer is not None:
            await self._peer.close()
        self._socket.close()
        if self._unix is not None:
            self._unix.close()
