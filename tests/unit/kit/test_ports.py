"""Ports: shared only with those meant to, refused to everybody else."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from penstock.kit.ports import Reserved, bound, number_of, reached_at

HOST = "127.0.0.1"


@pytest.fixture
def reserved() -> Iterator[Reserved]:
    held = Reserved(HOST, 0)
    yield held
    held.release()


def in_use(host: str, port: int) -> bool:
    """Whether a reservation is refused for that reason."""
    try:
        Reserved(host, port).release()
    except OSError as refusal:
        assert refusal.errno == errno.EADDRINUSE
        return True
    return False


def test_a_free_port_is_chosen_and_kept(reserved: Reserved) -> None:
    with reserved.socket() as one, reserved.socket() as other:
        assert number_of(one) == number_of(other) == reserved.port > 0


def test_sockets_of_a_reservation_listen_side_by_side(reserved: Reserved) -> None:
    with reserved.socket() as one, reserved.socket() as other:
        one.listen()
        other.listen()
        accepted = {one: 0, other: 0}
        callers = [socket.create_connection((HOST, reserved.port), timeout=5) for _ in range(64)]
        for listener in accepted:
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    break
                accepted[listener] += 1
        for caller in callers:
            caller.close()
        assert sum(accepted.values()) == 64 and all(accepted.values())


def test_a_second_reservation_is_refused_before_anybody_listens(reserved: Reserved) -> None:
    assert in_use(HOST, reserved.port)
    with reserved.socket():
        assert in_use(HOST, reserved.port)


def test_a_second_reservation_is_refused_when_the_first_listens_elsewhere_too(reserved: Reserved) -> None:
    with reserved.socket() as listening:
        listening.listen()
        assert in_use("0.0.0.0", reserved.port)


@pytest.mark.parametrize("shared", [False, True])
def test_whoever_listens_is_noticed(shared: bool) -> None:
    with bound(HOST, 0, shared=shared) as stranger:
        stranger.listen()
        assert in_use(HOST, number_of(stranger))


def test_a_port_that_is_not_shared_stays_so(reserved: Reserved) -> None:
    with reserved.socket() as listening:
        listening.listen()
        with pytest.raises(OSError, match="in use"):
            bound(HOST, reserved.port).close()


def test_a_released_port_can_be_had_again_even_with_connections_that_just_ended() -> None:
    first = Reserved(HOST, 0)
    with first.socket() as listening:
        listening.listen()
        with socket.create_connection((HOST, first.port), timeout=5):
            listening.accept()[0].close()  # the side that closes first keeps the port in TIME_WAIT
    first.release()
    first.release()
    assert not in_use(HOST, first.port)
    bound(HOST, first.port).close()


def test_a_wildcard_is_no_address() -> None:
    assert reached_at("127.0.0.1", "") == "127.0.0.1"
    assert reached_at("0.0.0.0", "") == reached_at("::", "") == socket.gethostname()
    assert reached_at("0.0.0.0", "gateway.example") == "gateway.example"
