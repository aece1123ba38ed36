"""A TCP proxy that can be told to be slow, silent or gone: what a network does, on one machine.

It runs on a thread of its own with a loop of its own; the methods that change it may be called from anywhere.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

CHUNK = 1 << 16


class Proxy:
    """From `host:port` to `target`, until the context is left.

    host: any address of 127.0.0.0/8, so that proxy and target may have one port number. transform: makes, for each
    connection, what the target's words go through.
    """

    def __init__(
        self,
        target: tuple[str, int],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        transform: Callable[[], Callable[[bytes], bytes]] | None = None,
    ) -> None:
        self.transform = transform
        self._target, self._host, self.port = target, host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._listening = threading.Event()
        self._stop = asyncio.Event()
        self._passing = {True: asyncio.Event(), False: asyncio.Event()}  # towards the target, and back
        self._delay = 0.0
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._listening.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def delay(self, seconds: float) -> None:
        """Every piece of bytes takes so much longer, in both directions."""
        self._delay = seconds

    def hang(self, *, to_target: bool = True, from_target: bool = True) -> None:
        """Connections stay open, are even accepted, and carry nothing in these directions: a cable that was cut."""
        for towards, stopped in ((True, to_target), (False, from_target)):
            if stopped:
                self._loop.call_soon_threadsafe(self._passing[towards].clear)

    def cut(self) -> None:
        """All connections break, and new ones too, at once."""
        self._refusing = True
        self._loop.call_soon_threadsafe(self._abort)

    def heal(self) -> None:
        """As a wire again."""
        self._refusing, self._delay = False, 0.0
        for passing in self._passing.values():
            self._loop.call_soon_threadsafe(passing.set)

    def _abort(self) -> None:
        for writer in self._writers:
            _reset(writer)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        for passing in self._passing.values():
            passing.set()
        server = await asyncio.start_server(self._connected, self._host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._stop.wait()
        server.close()
        for passing in self._passing.values():
            passing.set()
        self._refusing = True
        self._abort()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self._refusing:
                _reset(writer)
                return
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            self._writers.add(far_writer)
            try:
                await asyncio.gather(self._pass(reader, far_writer, True), self._pass(far_reader, writer, False))
            finally:
                self._writers.discard(far_writer)
                _reset(far_writer)
        except OSError:
            pass  # one end is gone: so is the other, below
        finally:
            self._writers.discard(writer)
            _reset(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, towards: bool) -> None:
        change = bytes if towards or self.transform is None else self.transform()
        while data := await reader.read(CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._passing[towards].wait()
            writer.write(change(data))
            await writer.drain()
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by a reset, which nobody can take for an orderly end."""
    if not writer.transport.is_closing():
        made: socket.socket = writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
