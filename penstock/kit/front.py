"""The public port of a process on the data plane.

Inference is served by the project's own transport (penstock/wire). Every other call (management, health, reflection)
is passed on, as it is, to the process's grpcio server, which listens on a unix socket in a folder that nobody else may
enter; its gate authenticates those by the caller's own credential.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from penstock.kit.identity import Authenticator
from penstock.wire.client import Peer
from penstock.wire.server import Forwarding, Limits, Method, Server

EVERYTHING: Final = ("/",)


class Front:
    """Bound when made, so that the port is known; accepts from `start`.

    limits: what one connection may cost. Raises OSError when the port cannot be taken.
    """

    def __init__(self, host: str, port: int, authenticator: Authenticator, limits: Limits) -> None:
        self._authenticator = authenticator
        self._limits = limits
        self._methods: dict[str, Method] = {}
        self._server: Server | None = None
        self._peer: Peer | None = None
        self._socket = _bound(host, port)
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-"))
        self.inner = f"unix:{self._folder / 'control.sock'}"

    @property
    def port(self) -> int:
        """The port that was taken."""
        return int(self._socket.getsockname()[1])

    def add(self, methods: Mapping[str, Method]) -> None:
        """Adds methods by full path; before `start`."""
        self._methods.update(methods)

    async def start(self) -> None:
        """Accepts connections; the grpcio server behind must have started."""
        self._peer = Peer(self.inner)
        self._server = Server(
            Forwarding(self._methods, self._peer, EVERYTHING),
            authenticate=self._authenticator.authenticate,
            limits=self._limits,
        )
        await self._server.start_on(self._socket)

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
        shutil.rmtree(self._folder, ignore_errors=True)


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
