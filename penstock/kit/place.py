"""Where a process stands: alone, or as one of several that a supervisor (penstock/kit/supervision) started.

A supervised process is handed its id, its bound sockets, the folder that all share, and a line to the supervisor. On
the line it says how far it has come, and at its end what it has counted; the line breaks when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.kit.ports import bound
from penstock.kit.runtime import RuntimeFolder

_VARIABLE: Final = "PENSTOCK_PLACE"
MADE: Final = "made"
READY: Final = "ready"
COUNTED: Final = "counted"


@dataclass(frozen=True)
class HandOver:
    """What a supervisor hands to a process, as a variable of its environment.

    sockets: file descriptor by the config field of its port; line: file descriptor; share: processes of the service.
    """

    id: str
    folder: str
    share: int
    sockets: dict[str, int]
    line: int

    def environment(self) -> dict[str, str]:
        """The variable that says it."""
        return {_VARIABLE: json.dumps(vars(self))}


class Line:
    """The process's end of the line to its supervisor. Messages are objects of JSON, one a line."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    async def say(self, word: str, **more: Any) -> None:
        """Tells the supervisor, if it is still there."""
        with suppress(OSError):
            message = json.dumps({"say": word, **more}) + "\n"
            await asyncio.get_running_loop().sock_sendall(self._end, message.encode())

    async def broken(self) -> None:
        """Returns when the supervisor is gone, for it never says anything."""
        with suppress(OSError):
            while await asyncio.get_running_loop().sock_recv(self._end, 1):
                pass

    def close(self) -> None:
        """Ends it."""
        self._end.close()


@dataclass
class Place:
    """What a process is given to stand on.

    id: empty when it is to make one up. share: how many processes divide what the service may use in total.
    """

    folder: RuntimeFolder
    id: str = ""
    share: int = 1
    line: Line | None = None
    _sockets: dict[str, socket.socket] = field(default_factory=dict)

    def socket(self, port_field: str, host: str, port: int) -> socket.socket:
        """The bound socket of a port: the one that was handed over, or a new one. Raises OSError."""
        handed = self._sockets.pop(port_field, None)
        return handed if handed is not None else bound(host, port)

    def private(self, name: str) -> Path:
        """A path in the shared folder that no other live process has."""
        return self.folder.path / f"{name}-{os.getpid()}.sock"

    def leave(self) -> None:
        """Gives back everything. May be called more than once."""
        for each in self._sockets.values():
            each.close()
        if self.line is not None:
            self.line.close()
        self.folder.close()


def supervised() -> bool:
    """Whether a supervisor started this process."""
    return _VARIABLE in os.environ


def take_place() -> Place:
    """The place of this process; once only, so that nothing that it starts believes to stand there. Raises OSError."""
    text = os.environ.pop(_VARIABLE, "")
    if not text:
        return Place(RuntimeFolder.make())
    handed = HandOver(**json.loads(text))
    sockets: Mapping[str, socket.socket] = {name: _taken(number) for name, number in handed.sockets.items()}
    line = Line(_taken(handed.line))
    return Place(RuntimeFolder.join(Path(handed.folder)), handed.id, handed.share, line, dict(sockets))


def _taken(number: int) -> socket.socket:
    os.set_inheritable(number, False)
    return socket.socket(fileno=number)
