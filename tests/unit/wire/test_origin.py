"""Whom the kernel says a connection comes from: real sockets, and where this is root, a process of another user."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.wire.origin import ELSEWHERE, Origin


class Transport:
    """What an asyncio transport tells of its socket. peer: what it says instead of the truth."""

    def __init__(self, end: socket.socket, peer: Any = None) -> None:
        self._told = {"socket": end}
        if end.family != socket.AF_UNIX:
            self._told |= {"peername": peer or end.getpeername(), "sockname": end.getsockname()}

    def get_extra_info(self, name: str) -> Any:
        return self._told.get(name)


def listen(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::")


@pytest.mark.parametrize(("bound", "dialled"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")])
def test_a_process_of_ours_over_loopback(bound: str, dialled: str) -> None:
    with listen(bound) as server, socket.create_connection((dialled, server.getsockname()[1])):
        accepted, _ = server.accept()
        with accepted:
            assert Origin(Transport(accepted)).same_user


def test_a_process_of_ours_over_a_unix_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
        accepted, _ = server.accept()
        with accepted:
            assert Origin(Transport(accepted)).same_user


CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
family, address = sys.argv[1], sys.argv[2]
end = socket.socket(getattr(socket, family))
end.connect("\\0" + address if family == "AF_UNIX" else ("127.0.0.1", int(address)))
end.send(b"x")
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
def test_a_process_of_another_user_on_this_host_is_no_neighbour(family: str) -> None:
    server = listen("127.0.0.1") if family == "AF_INET" else socket.socket(socket.AF_UNIX)
    with server:
        if family == "AF_UNIX":
            address = f"penstock-test-{os.getpid()}"
            server.bind(f"\0{address}")  # an abstract name: another user may not enter a test's folder
            server.listen()
        else:
            address = str(server.getsockname()[1])
        command = [sys.executable, "-I", "-c", CONNECT, family, address]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/") as process:
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(1) == b"x"
                assert not Origin(Transport(accepted)).same_user
            process.communicate(timeout=10)


@pytest.mark.parametrize(
    "peer", [("10.1.2.3", 40000), ("192.0.2.1", 1), ("::ffff:10.0.0.1", 5, 0, 0), ("fe80::1%1", 5)]
)
def test_a_peer_with_an_address_of_elsewhere(peer: tuple[Any, ...]) -> None:
    with listen("127.0.0.1") as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert not Origin(Transport(accepted, peer)).same_user


def end_of_client(client: socket.socket, accepted: socket.socket) -> None:
    client.close()


def half_closed(client: socket.socket, accepted: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def closed_here(client: socket.socket, accepted: socket.socket) -> None:
    accepted.close()


@pytest.mark.parametrize("happens", [end_of_client, half_closed, closed_here])
def test_a_connection_that_is_ending_tells_of_nobody(
    happens: Callable[[socket.socket, socket.socket], None],
) -> None:
    with listen("127.0.0.1") as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            transport = Transport(accepted)
            happens(client, accepted)
            assert not Origin(transport).same_user


def test_another_free_port_of_loopback_is_not_a_peer() -> None:
    with listen("127.0.0.1") as server, listen("127.0.0.1") as other, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            # A listening socket is found for a connection that does not exist; it is not one.
            assert not Origin(Transport(accepted, other.getsockname())).same_user


def test_it_is_asked_once() -> None:
    with listen("127.0.0.1") as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            origin = Origin(Transport(accepted))
            assert origin.same_user
            client.close()
            assert origin.same_user, "what a connection was, it stays"


def test_no_connection_is_elsewhere() -> None:
    assert not ELSEWHERE.same_user
