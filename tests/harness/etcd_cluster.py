"""Three real etcds on loopback as one cluster, to be killed, frozen and cut off from each other; and its fixture.

Members reach each other through doors, which know who comes: etcd's members say so at the head of every connection of
theirs (`X-Server-From`). So a cut needs no network namespace.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from penstock.internal.etcd import rpc_pb2 as pb
from penstock.internal.etcd import rpc_pb2_grpc as rpc
from tests.harness.etcd import EtcdProcess, free_port

_FROM = re.compile(rb"(?i)^x-server-from: *([0-9a-f]+)\r$", re.MULTILINE)


def status(endpoint: str) -> pb.StatusResponse:
    """What a member says of itself; its id is in the header."""
    with grpc.insecure_channel(endpoint) as channel:
        return rpc.MaintenanceStub(channel).Status(pb.StatusRequest(), timeout=10, wait_for_ready=True)


class _Door:
    """Where the other members find one of them. barred: ids of members that are cut off; of them all, shared."""

    def __init__(self, inner_port: int, barred: set[int]) -> None:
        self.member = 0
        self._inner_port = inner_port
        self._barred = barred
        self._open: list[tuple[int, socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends the connections that are barred by now."""
        for sender, outer, inner in list(self._open):
            if {sender, self.member} & self._barred:
                _end(outer, inner)

    def close(self) -> None:
        """Ends everything."""
        _end(self._listener, *(end for _, *ends in list(self._open) for end in ends))
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                outer, _ = self._listener.accept()
                threading.Thread(target=self._enter, args=(outer,), daemon=True).start()

    def _enter(self, outer: socket.socket) -> None:
        with outer, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                data = outer.recv(65536)
                if not data:
                    return
                head += data
            found = _FROM.search(head)
            sender = int(found[1], 16) if found else 0
            if {sender, self.member} & self._barred:
                return
            with socket.create_connection(("127.0.0.1", self._inner_port)) as inner:
                inner.sendall(head)
                self._open.append((sender, outer, inner))
                back = threading.Thread(target=_carry, args=(inner, outer), daemon=True)
                back.start()
                _carry(outer, inner)
                back.join()
                self._open.remove((sender, outer, inner))


def _carry(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _end(source, target)


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class EtcdCluster:
    """`members`: real processes, each with the methods of EtcdProcess."""

    def __init__(self, folder: Path, size: int = 3) -> None:
        self._barred: set[int] = set()
        ports = [free_port() for _ in range(size)]
        self._doors = [_Door(port, self._barred) for port in ports]
        urls = [f"http://127.0.0.1:{door.port}" for door in self._doors]
        everybody = ",".join(f"member-{number}={url}" for number, url in enumerate(urls))
        self.members = [
            EtcdProcess(
                folder / f"member-{number}",
                f"--name=member-{number}",
                f"--listen-peer-urls=http://127.0.0.1:{ports[number]}",
                f"--initial-advertise-peer-urls={urls[number]}",
                f"--initial-cluster={everybody}",
            )
            for number in range(size)
        ]

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def start(self) -> None:
        """Starts all and waits until they are one."""
        for member in self.members:
            member.launch()
        for member in self.members:
            member.await_health()
        for member, door in zip(self.members, self._doors, strict=True):
            door.member = status(member.endpoint).header.member_id

    def stop(self) -> None:
        """Ends all at once."""
        for member in self.members:
            if member.running:
                member.kill()
        for door in self._doors:
            door.close()

    def leader(self) -> EtcdProcess:
        """Whom the members follow; ask while most of them are well."""
        told = next(status(member.endpoint).leader for member in self.members if member.running)
        return next(member for member, door in zip(self.members, self._doors, strict=True) if door.member == told)

    def isolate(self, member: EtcdProcess) -> None:
        """Cuts it off from the other members, but not from clients."""
        self._barred.add(self._doors[self.members.index(member)].member)
        for door in self._doors:
            door.cut()

    def rejoin(self) -> None:
        """Ends every cut."""
        self._barred.clear()


@pytest.fixture
def etcd_cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    """A cluster of three, of the test's own, running."""
    cluster = EtcdCluster(tmp_path / "cluster")
    cluster.start()
    yield cluster
    cluster.stop()
