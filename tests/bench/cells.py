"""One cell of the tables: the same load, checked before, during and after, with the CPU time of each process."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TypeAlias

from tests.bench import loads
from tests.bench.cpu import ENGINE, Meter, Used
from tests.bench.exchange import Exchange, agreed, agreed_json, framed
from tests.bench.loads import Shape
from tests.bench.output import Load, WrongAnswers, quantile

Cell: TypeAlias = dict[str, float]
"""Figures by name: rate (requests/s), requests, p50_ms and p99_ms where the generator gives them, microseconds of CPU
per request as `<group>_us`, and for all groups but the engine `both_us`, of it in the kernel `kernel_us`, and how often
a thread began to wait for each request, `waits`."""


def figures(load: Load, used: Used) -> Cell:
    """A cell from what the load generator saw and what each group used (pure)."""

    def both(figure: Mapping[str, float]) -> float:
        return sum(value for group, value in figure.items() if group != ENGINE) / load.requests

    times = {"p50_ms": load.p50 * 1e3, "p99_ms": load.p99 * 1e3}
    cell: Cell = {
        "requests": load.requests,
        "rate": load.rate,
        **{name: time for name, time in times.items() if not isnan(time)},
        "both_us": both(used.seconds) * 1e6,
        "kernel_us": both(used.kernel) * 1e6,
        "waits": both(used.waits),
    }
    return cell | {f"{group}_us": seconds / load.requests * 1e6 for group, seconds in used.seconds.items()}


def count(rate: float, seconds: float, shape: Shape) -> int:
    """Requests for about so many seconds, the same number on every connection, two rounds at least (pure)."""
    per_connection = max(2 * shape.depth, round(rate * seconds / shape.connections))
    return per_connection * shape.connections


class Bench:
    """Measures cells. seconds: how long a cell is to take; scratch: a folder for request bodies."""

    def __init__(self, seconds: float, scratch: Path) -> None:
        self.seconds = seconds
        self.scratch = scratch

    def grpc(self, address: str, heads: Mapping[int, str], exchange: Exchange, shape: Shape) -> Cell:
        """h2load; raises WrongAnswers."""
        right = agreed(address, exchange)
        body = self._file("request.grpc", framed(exchange.message()))
        rate = loads.warm_h2load(address, body, shape)
        meter = Meter(heads)
        meter.start()
        load = loads.h2load(
            address, body, shape, count(rate, self.seconds, shape), len(framed(right.payload)), self.scratch
        )
        used = meter.stop()
        _same(right.payload, agreed(address, exchange).payload)
        return figures(load, used)

    def rest(self, url: str, heads: Mapping[int, str], exchange: Exchange, shape: Shape) -> Cell:
        """wrk, which compares every body; raises WrongAnswers."""
        right = agreed_json(url, exchange)
        body, answer = self._file("request.json", exchange.json()), self._file("answer.json", right)
        loads.wrk(url, body, answer, shape, 1)
        meter = Meter(heads)
        meter.start()
        load = loads.wrk(url, body, answer, shape, self.seconds)
        used = meter.stop()
        _same(right, agreed_json(url, exchange))
        return figures(load, used)

    def caller(self, address: str, heads: Mapping[int, str], exchange: Exchange, shape: Shape) -> Cell:
        """A grpcio client with varying deadlines, which compares every answer; raises WrongAnswers.

        Its start is not measured apart: the servers do nothing while it imports.
        """
        files = self.messages(address, exchange)
        meter = Meter(heads)
        meter.start()
        said = loads.caller("closed", address, *files, shape.connections, shape.depth, self.seconds)
        used = meter.stop()
        if said["wrong"]:
            raise WrongAnswers(f"{said['wrong']} of {len(said['took'])} answers to the grpcio client were wrong")
        took = sorted(said["took"])
        return figures(Load(len(took), said["seconds"], quantile(took, 0.5), quantile(took, 0.99)), used)

    def messages(self, address: str, exchange: Exchange) -> tuple[Path, Path]:
        """Files with the request and the right answer, for tests.bench.caller."""
        right = agreed(address, exchange)
        return self._file("request.pb", exchange.message()), self._file("answer.pb", right.payload)

    def _file(self, name: str, content: bytes) -> Path:
        path = self.scratch / name
        path.write_bytes(content)
        return path


def _same(before: bytes, after: bytes) -> None:
    if before != after:
        raise WrongAnswers("the answer after the measurement is not the one from before it")
