"""One place among the processes of a service, and how it is asked to renew the one that stands there."""

from __future__ import annotations

import asyncio
import socket

from penstock.kit.supervision.child import Child
from penstock.kit.supervision.restarts import Restarts


class Slot:
    """One place among the processes. Its sockets outlive a process that is renewed, and not one that dies: who was
    about to be accepted there should try again and reach another."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.sockets: dict[str, socket.socket] = {}
        self.restarts = Restarts()
        self.served = asyncio.Event()
        self._asked = self._question()

    @property
    def asked(self) -> asyncio.Future[asyncio.Future[Child | None]]:
        """Done when a renewal is wanted; holds whom to tell of it."""
        return self._asked

    async def renew(self) -> Child | None:
        """Has the process replaced; returns the one that leaves, None when its successor could not be started."""
        answer: asyncio.Future[Child | None] = asyncio.get_running_loop().create_future()
        self._asked.set_result(answer)
        return await answer

    def taken_up(self) -> asyncio.Future[Child | None]:
        """Whom to tell of the renewal that is wanted; the next may be asked for."""
        answer, self._asked = self._asked.result(), self._question()
        return answer

    def close(self) -> None:
        """Nobody listens here."""
        while self.sockets:
            self.sockets.popitem()[1].close()

    @staticmethod
    def _question() -> asyncio.Future[asyncio.Future[Child | None]]:
        return asyncio.get_running_loop().create_future()
