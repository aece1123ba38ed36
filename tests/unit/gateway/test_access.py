"""The access log: which requests get a line, what is in it, and that a flood of failures does not fill a disk."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.errors import InvalidArgument, NotFound, PenstockError
from penstock.wire.call import Call
from services.gateway import access
from services.gateway.access import AccessLog
from tests.unit.gateway.doubles import Gateway, echo, failing, request
from tests.unit.gateway.records import deployment, replica

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Written:
    """The lines of a log. draws: what chance says, in turn."""

    def __init__(self, share: float, *draws: float) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        left = list(draws)
        self.log = AccessLog(share, write=self._write, chance=lambda: left.pop(0) if left else 0.999)

    def _write(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))


def call() -> Call:
    return Call("ModelInfer", b"12345", 0.0, {"traceparent": PARENT}, caller="ads", request_id="r-1")


def test_a_line_says_who_asked_for_what_and_how_it_ended() -> None:
    written = Written(1.0, 0.5)
    written.log.ended(call(), "digits", "OK", 0.0123456)
    written.log.flush()
    written.log.flush()
    assert written.lines == [
        (
            "request",
            {
                "method": "ModelInfer",
                "model": "digits",
                "code": "OK",
                "milliseconds": 12.346,
                "bytes": 5,
                "caller": "ads",
                "request_id": "r-1",
                "trace_id": "0af7651916cd43dd8448eb211c80319c",
            },
        )
    ]


def test_a_share_of_those_that_end_well_and_all_that_fail() -> None:
    written = Written(0.25, 0.3, 0.2, 0.9)
    for number, code in enumerate(("OK", "OK", "NOT_FOUND", "OK", "CANCELLED")):
        written.log.ended(call(), str(number), code, 0.0)
    written.log.flush()
    assert [fields["model"] for _, fields in written.lines] == ["1", "2", "4"]


def test_what_is_too_much_is_counted() -> None:
    written = Written(0.0)
    for _ in range(access.MOST + 7):
        written.log.ended(call(), "x" * 1000, "NOT_FOUND", 0.0)
    written.log.flush()
    assert len(written.lines) == access.MOST + 1
    assert written.lines[0][1]["model"] == "x" * access.NAME
    assert written.lines[-1] == ("requests_not_written", {"count": 7})
    written.log.ended(call(), "digits", "NOT_FOUND", 0.0)
    written.log.flush()
    assert len(written.lines) == access.MOST + 2


async def test_it_is_written_while_it_runs_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "INTERVAL", 0.001)
    written = Written(0.0)
    running = asyncio.create_task(written.log.run())
    written.log.ended(call(), "first", "INTERNAL", 0.0)
    async with asyncio.timeout(30):
        while not written.lines:  # noqa: ASYNC110 - the writing is what is waited for
            await asyncio.sleep(0)
    monkeypatch.setattr(access, "INTERVAL", 60.0)
    await asyncio.sleep(0.01)
    written.log.ended(call(), "last", "INTERNAL", 0.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [fields["model"] for _, fields in written.lines] == ["first", "last"]


@pytest.mark.parametrize("straight", [False, True])
@pytest.mark.parametrize(
    ("model", "error", "code"),
    [
        ("digits", None, "OK"),
        ("digits", InvalidArgument("no such input"), "INVALID_ARGUMENT"),
        ("nobody", NotFound(""), "NOT_FOUND"),
    ],
)
async def test_every_request_is_told_once_on_both_roads(
    straight: bool, model: str, error: PenstockError | None, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gateway, "straight", straight)
    written = Written(1.0, *[0.0] * 9)
    gateway = Gateway([deployment("digits", 1)], [replica("w1")], access=written.log)
    gateway.workers.behaviours["w1:1"] = echo if error is None else failing(error)
    for number in range(2):
        try:
            await gateway.infer(request(model, **{"x-request-id": f"r-{number}"}))
        except PenstockError as raised:
            assert raised.code.name == code
    written.log.flush()
    told = [(fields["model"], fields["code"], fields["request_id"]) for _, fields in written.lines]
    assert told == [(model, code, "r-0"), (model, code, "r-1")]
