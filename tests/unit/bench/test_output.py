"""What h2load and wrk print, read back; wrong answers are noticed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.bench.output import (
    Load,
    WrongAnswers,
    check_h2load,
    h2load_times,
    parse_h2load,
    parse_wrk,
    quantile,
)

H2LOAD = """starting benchmark...
spawning thread #0: 8 total client(s). 2000 total requests
Application protocol: h2c
progress: 100% done

finished in 503.27ms, 3974.01 req/s, 535.02KB/s
requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 269.26KB (275720) total, 44.92KB (46000) headers (space savings 87.50%), 207.03KB (212000) data
                     min         max         mean         sd        +/- sd
time for request:      301us     20.91ms      1.99ms      1.13ms    93.05%
time for connect:      131us       452us       262us       103us    62.50%
"""
WRK = """Running 2s test @ http://127.0.0.1:8000/v2/models/add1/infer
  1 threads and 8 connections
  1234 requests in 2.00s, 0.50MB read
penstock-wrk {"requests": 1234, "microseconds": 2001000, "p50": 12000, "p99": 30000, "checked": 1240, "wrong": 0, "errors": 0}
"""  # noqa: E501


def test_the_summary_of_h2load_is_read() -> None:
    summary = parse_h2load(H2LOAD)
    assert (summary.total, summary.succeeded, summary.bad, summary.ok_status) == (2000, 2000, 0, 2000)
    assert summary.data == 212000
    assert summary.seconds == pytest.approx(0.50327)
    assert summary.rate == 3974.01
    check_h2load(summary, 106)


@pytest.mark.parametrize(("text", "seconds"), [("2.50s", 2.5), ("750us", 0.00075), ("1m", 60.0)])
def test_times_have_units(text: str, seconds: float) -> None:
    assert parse_h2load(H2LOAD.replace("503.27ms", text)).seconds == pytest.approx(seconds)


def test_what_is_no_summary_is_refused() -> None:
    with pytest.raises(ValueError, match="not a summary"):
        parse_h2load("h2load: could not resolve host")
    with pytest.raises(ValueError, match="not the output"):
        parse_wrk("unable to connect to 127.0.0.1:1")


def test_an_answer_without_its_message_is_noticed() -> None:
    # A gRPC failure is status 200 and no DATA.
    with pytest.raises(WrongAnswers, match="211894"):
        check_h2load(replace(parse_h2load(H2LOAD), data=212000 - 106), 106)


@pytest.mark.parametrize(
    "changed",
    ["1999 succeeded, 1 failed, 0 errored, 0 timeout", "1999 succeeded, 0 failed, 1 errored, 0 timeout"],
)
def test_a_failed_request_is_noticed(changed: str) -> None:
    text = H2LOAD.replace("2000 succeeded, 0 failed, 0 errored, 0 timeout", changed)
    with pytest.raises(WrongAnswers):
        check_h2load(parse_h2load(text), 106)


def test_a_status_other_than_2xx_is_noticed() -> None:
    with pytest.raises(WrongAnswers):
        check_h2load(parse_h2load(H2LOAD.replace("2000 2xx, 0 3xx, 0 4xx", "1999 2xx, 0 3xx, 1 4xx")), 106)


def test_the_log_of_h2load_gives_times_in_order() -> None:
    assert h2load_times("1\t200\t3000\n2\t200\t1000\n") == [0.001, 0.003]
    with pytest.raises(WrongAnswers, match="-1"):
        h2load_times("1\t200\t3000\n2\t-1\t1000\n")


def test_the_line_of_wrk_is_read() -> None:
    load = parse_wrk(WRK)
    assert load == Load(1234, 2.001, 0.012, 0.03)
    assert load.rate == pytest.approx(616.7, abs=0.1)


def test_wrk_without_times_of_requests() -> None:
    load = parse_wrk(WRK.replace("12000", "0").replace("30000", "0"))
    assert math.isnan(load.p50)
    assert math.isnan(load.p99)


@pytest.mark.parametrize(
    ("right", "wrong"), [('"wrong": 0', '"wrong": 1'), ('"errors": 0', '"errors": 2'), ("1240", "1233")]
)
def test_wrk_saw_something_else(right: str, wrong: str) -> None:
    with pytest.raises(WrongAnswers):
        parse_wrk(WRK.replace(right, wrong))


def test_quantiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert quantile([7.0], 0.5) == 7.0
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)
