"""What a request costs on its way: gRPC and REST through both hops, beside bare grpc.aio."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from tests.bench import exchange, models, place
from tests.bench.exchange import agreed
from tests.bench.loads import SHAPES, Shape
from tests.bench.output import WrongAnswers
from tests.bench.run import Run
from tests.harness import models as small_models

IDLE: Final = 1000
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS_ACK: Final = bytes((0, 0, 0, 4, 1, 0, 0, 0, 0))


def memory(run: Run) -> None:
    """Resident memory before anything is deployed."""
    run.keep("memory", run.place.memory())


def grpc(run: Run) -> None:
    """add1 over gRPC through both hops; beside each cell the bare grpc.aio server, so that drift touches both."""
    asked = exchange.add1()
    worker = run.deployed("add1", small_models.add_one)
    with place.yardstick("add1") as (address, pid):
        for shape in SHAPES:
            run.keep(f"grpc add1 {shape.name}", run.bench.grpc(run.place.grpc, run.place.heads(worker), asked, shape))
            run.keep(f"bare grpc.aio add1 {shape.name}", run.bench.grpc(address, {pid: "server"}, asked, shape))


def rest(run: Run) -> None:
    """add1 over REST with JSON. 8x8 means HTTP/1.1 pipelining, eight deep."""
    worker = run.deployed("add1", small_models.add_one)
    for shape in SHAPES:
        cell = run.bench.rest(run.place.infer_url("add1"), run.place.heads(worker), exchange.add1(), shape)
        run.keep(f"rest add1 {shape.name}", cell)


def image(run: Run) -> None:
    """600 KB each way, through two hops and through one, beside bare grpc.aio through two and one; and by reference."""
    asked = exchange.image()
    worker = run.deployed("image", models.image)
    heads = run.place.heads(worker)
    alone = run.place.heads(worker, gateway=False)
    with ExitStack() as stack:
        echo, echo_pid = stack.enter_context(place.yardstick("echo"))
        front, front_pid = stack.enter_context(place.yardstick("forward", echo))
        for shape in (Shape(1, 1), Shape(8, 1)):
            two = run.bench.grpc(run.place.grpc, heads, asked, shape)
            run.keep(f"grpc image {shape.name}", two)
            bare = run.bench.grpc(front, {front_pid: "front", echo_pid: "server"}, asked, shape)
            run.keep(f"bare grpc.aio two hops image {shape.name}", bare)
            one = run.bench.grpc(run.place.worker_address(worker), alone, asked, shape)
            run.keep(f"grpc one hop image {shape.name}", one)
            bare = run.bench.grpc(echo, {echo_pid: "server"}, asked, shape)
            run.keep(f"bare grpc.aio image {shape.name}", bare)
        with exchange.shared_image(run.place.grpc) as shared:
            for shape in (Shape(1, 1), Shape(8, 1)):
                cell = run.bench.grpc(run.place.grpc, heads, shared, shape)
                run.keep(f"shared memory image {shape.name}", cell)
    run.place.undeploy("image")


def caller(run: Run) -> None:
    """A grpcio client whose deadlines vary, so that header blocks do not repeat."""
    worker = run.deployed("add1", small_models.add_one)
    cell = run.bench.caller(run.place.grpc, run.place.heads(worker), exchange.add1(), Shape(8, 8))
    run.keep("grpcio client add1 8x8", cell)


def idle(run: Run) -> None:
    """64 busy connections, alone and beside a thousand that do nothing."""
    asked, shape = exchange.add1(), Shape(64, 1)
    worker = run.deployed("add1", small_models.add_one)
    heads = run.place.heads(worker)
    run.keep("grpc add1 64x1 alone", run.bench.grpc(run.place.grpc, heads, asked, shape))
    with idle_connections(run.place.grpc, IDLE):
        run.keep(f"grpc add1 64x1 beside {IDLE} idle", run.bench.grpc(run.place.grpc, heads, asked, shape))
        agreed(run.place.grpc, asked)


@contextmanager
def idle_connections(address: str, count: int) -> Iterator[None]:
    """So many HTTP/2 connections that have exchanged SETTINGS and then say nothing."""
    host, _, port = address.partition(":")
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=10.0))
            connection.sendall(_PREFACE)
            if not connection.recv(9):
                raise WrongAnswers("the gateway closed an idle connection")
            connection.sendall(_SETTINGS_ACK)
        yield
