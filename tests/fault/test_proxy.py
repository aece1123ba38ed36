"""The proxy passes bytes, and stops passing them in each of its ways."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.fault.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that says everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=say_back, args=(connection,), daemon=True).start()

    def say_back(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    connection.sendall(data)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[:2]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_it_passes_hangs_and_heals(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 30) as caller:
        caller.sendall(b"one")
        assert caller.recv(3) == b"one"
        proxy.hang(to_target=False)  # the echo comes as far as the proxy
        caller.sendall(b"two")
        caller.settimeout(0.2)
        with pytest.raises(TimeoutError):
            caller.recv(3)
        proxy.heal()
        caller.settimeout(30)
        assert caller.recv(3) == b"two"


def test_a_cut_breaks_connections_and_refuses_new_ones(echo: tuple[str, int]) -> None:
    with Proxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 30) as caller:
        caller.sendall(b"one")
        assert caller.recv(3) == b"one"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            caller.recv(1)
        # The reset may come before the connection is made, or after.
        with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", proxy.port), 30) as late:
            late.recv(1)
        proxy.heal()
        with socket.create_connection(("127.0.0.1", proxy.port), 30) as again:
            again.sendall(b"two")
            assert again.recv(3) == b"two"
