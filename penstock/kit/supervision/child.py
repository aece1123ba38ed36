"""One supervised process, as its supervisor sees it: started, listened to, asked, signalled, and its end noticed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from penstock.kit.place import COUNTED, MADE, READY, HandOver

ASK_SECONDS: Final = 2.0
"""What a process may take to answer a question; its admin thread needs no turn of its event loop."""
_LARGEST_MESSAGE: Final = 1 << 28


class Child:
    """A process that runs the same command as this one did. Make it inside an event loop, and run `listen`.

    made: it has accepted its configuration; ready: when it began to serve, on the loop's clock; over: its exit status,
    negative for a signal.
    """

    def __init__(self, id: str, folder: Path, share: int, sockets: Mapping[str, socket.socket]) -> None:
        """Raises OSError when it cannot be started."""
        self.id = id
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[None] = loop.create_future()
        self.ready: asyncio.Future[float] = loop.create_future()
        self.over: asyncio.Future[int] = loop.create_future()
        self.leaving = False
        self._ours, theirs = socket.socketpair()
        try:
            numbers = {name: each.fileno() for name, each in sockets.items()}
            handed = HandOver(id, str(folder), share, numbers, theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**os.environ, **handed.environment()},
                pass_fds=[*numbers.values(), theirs.fileno()],
                # Ctrl-C in the terminal is for the supervisor.
                start_new_session=True,
            )
        except OSError:
            self._ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self._admin = folder / f"admin-{self.pid}.sock"
        self._folder = folder
        self._end = os.pidfd_open(self.pid)
        loop.add_reader(self._end, self._ended)

    def end(self) -> None:
        """Asks it to drain and end; once, because a second time would mean at once."""
        if not self.leaving:
            self.leaving = True
            self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it at once."""
        self._send(signal.SIGKILL)

    def served_seconds(self) -> float:
        """How long it has been ready by now."""
        return asyncio.get_running_loop().time() - self.ready.result() if self.ready.done() else 0.0

    async def listen(self, counted: Callable[[str], None]) -> None:
        """Hears what it says, until it has no more to say. counted: told the text of its last counts."""
        reader, writer = await asyncio.open_unix_connection(sock=self._ours, limit=_LARGEST_MESSAGE)
        try:
            while line := await reader.readline():
                self._hear(json.loads(line), counted)
        except (OSError, ValueError):
            # It was cut off in the middle of a word.
            return
        finally:
            writer.close()

    async def ask(self, path: str) -> tuple[bool, str]:
        """A question to its admin socket: whether the answer is a success, and its text."""
        try:
            async with asyncio.timeout(ASK_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._admin))
                try:
                    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                    head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False, "it does not answer"
        status, *headers = head.decode("latin-1").lower().split("\r\n")
        if f"content-length: {len(body)}" not in headers:
            return False, "it broke off"
        return " 200 " in status, body.decode().strip()

    def _send(self, number: signal.Signals) -> None:
        # The process is waited for in one place, so the number cannot be another's by now.
        if not self.over.done():
            self._process.send_signal(number)

    def _hear(self, message: dict[str, str], counted: Callable[[str], None]) -> None:
        word = message["say"]
        if word == MADE:
            self.made.set_result(None)
        elif word == READY:
            self.ready.set_result(asyncio.get_running_loop().time())
        elif word == COUNTED:
            counted(message["text"])

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._end)
        os.close(self._end)
        self.over.set_result(self._process.wait())
        for left in self._folder.glob(f"*-{self.pid}.sock"):
            left.unlink(missing_ok=True)
