"""What the load generators print, as numbers (pure)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_FINISHED: Final = re.compile(r"finished in ([0-9.]+)(us|ms|s|m|h), ([0-9.]+) req/s")
_REQUESTS: Final = re.compile(
    r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout"
)
_STATUS: Final = re.compile(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx")
_DATA: Final = re.compile(r"traffic: .*?\((\d+)\) total, .*?\((\d+)\) headers .*?\((\d+)\) data")
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
WRK_LINE: Final = "penstock-wrk "


class WrongAnswers(Exception):
    """Not every request got the answer that it should have got: what was measured is not the service."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a load generator saw. seconds: how long it ran; p50, p99: seconds a request, NaN where unknown."""

    requests: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class H2load:
    """The summary of h2load. data: bytes of all answers' bodies, without headers and trailers."""

    seconds: float
    rate: float
    total: int
    succeeded: int
    bad: int
    ok_status: int
    data: int


def parse_h2load(text: str) -> H2load:
    """The summary in h2load's output; raises ValueError where there is none."""
    finished, requests = _FINISHED.search(text), _REQUESTS.search(text)
    status, data = _STATUS.search(text), _DATA.search(text)
    if not (finished and requests and status and data):
        raise ValueError(f"not a summary of h2load:\n{text[-2000:]}")
    counts = [int(count) for count in requests.groups()]
    return H2load(
        seconds=float(finished[1]) * _UNITS[finished[2]],
        rate=float(finished[3]),
        total=counts[0],
        succeeded=counts[3],
        bad=sum(counts[4:]),
        ok_status=int(status[1]),
        data=int(data[3]),
    )


def check_h2load(summary: H2load, answer_size: int) -> None:
    """Every request had status 200 and an answer of this size, in bytes of DATA; raises WrongAnswers.

    A gRPC failure has status 200 too, but no message: it shows in the sum of bytes.
    """
    if summary.bad or summary.succeeded != summary.total or summary.ok_status != summary.total:
        raise WrongAnswers(f"{summary.total} requests, {summary.ok_status} with 2xx, {summary.bad} failed")
    if summary.data != summary.total * answer_size:
        raise WrongAnswers(f"{summary.total} answers of {answer_size} bytes each were {summary.data} bytes in all")


def h2load_times(log: str) -> list[float]:
    """Seconds of each request of h2load's --log-file, in ascending order; raises WrongAnswers where one failed."""
    times = []
    for line in log.splitlines():
        _, status, microseconds = line.split("\t")
        if status != "200":
            raise WrongAnswers(f"a request ended with status {status}")
        times.append(int(microseconds) / 1e6)
    return sorted(times)


def parse_wrk(text: str) -> Load:
    """The line that check.lua prints at the end; raises WrongAnswers, ValueError."""
    line = next((line for line in text.splitlines() if line.startswith(WRK_LINE)), None)
    if line is None:
        raise ValueError(f"not the output of wrk with check.lua:\n{text[-2000:]}")
    said = json.loads(line.removeprefix(WRK_LINE))
    if said["wrong"] or said["errors"] or said["checked"] < said["requests"]:
        raise WrongAnswers(f"wrk: {line}")
    # wrk keeps no times of pipelined requests.
    p50, p99 = ((said[name] or math.nan) / 1e6 for name in ("p50", "p99"))
    return Load(said["requests"], said["microseconds"] / 1e6, p50, p99)


def quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; raises ValueError for none."""
    if not ascending:
        raise ValueError("no values")
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
