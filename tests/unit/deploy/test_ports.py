"""Ports of a local run."""

from __future__ import annotations

import re
import socket

import pytest

from deploy.local import ports as module
from deploy.local.ports import LOWEST, TABLE, Ports, free_ports


def test_the_table() -> None:
    ports = Ports.read({})
    assert (ports["gateway_rest"], ports["gateway_grpc"], ports["gateway_admin"]) == (8000, 8001, 8002)
    names = [name for name, _ in ports.items()]
    assert names == [name.lower() for name in re.findall(r"^PENSTOCK_PORT_(\w+)=", TABLE.read_text(), re.MULTILINE)]
    numbers = [number for _, number in ports.items()]
    assert len(set(numbers)) == len(numbers)
    with pytest.raises(KeyError):
        ports["gateway"]


def test_the_environment_moves_one() -> None:
    moved = Ports.read({"PENSTOCK_PORT_GATEWAY_REST": "9000", "PENSTOCK_PORT_UNKNOWN": "1", "GATEWAY_GRPC": "2"})
    assert dict(moved.items()) == {**dict(Ports.read({}).items()), "gateway_rest": 9000}


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "http", "80.0", " 80", "8e3", "٨", "²", "9" * 30])
def test_what_is_no_port_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"PENSTOCK_PORT_ETCD_PEER=.* is not a port"):
        Ports.read({"PENSTOCK_PORT_ETCD_PEER": text})


def test_two_services_on_one_port_are_refused() -> None:
    with pytest.raises(ValueError, match="PENSTOCK_PORT_GATEWAY_GRPC"):
        Ports.read({"PENSTOCK_PORT_GATEWAY_GRPC": "8000"})


def test_free_ports_are_free_and_differ() -> None:
    ports = Ports.free()
    assert [name for name, _ in ports.items()] == [name for name, _ in Ports.read({}).items()]
    assert len({number for _, number in ports.items()}) == len(ports.items())
    assert ports.taken() == []


def test_no_connection_is_given_a_free_port_before_it_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first = module._first_of_connections()
    found = free_ports(50)
    assert len(set(found)) == 50
    assert first <= LOWEST or all(LOWEST <= number < first for number in found)
    # Where the kernel takes all, its own choice is as good as any.
    monkeypatch.setattr(module, "_first_of_connections", lambda: 1024)
    assert len(set(free_ports(50))) == 50


def test_what_is_taken_is_found() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        assert Ports({"one": number}).taken() == [("one", number)]
    assert Ports({"one": number}).taken() == []
