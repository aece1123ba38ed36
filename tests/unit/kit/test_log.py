"""One record per event, whatever it holds."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from penstock.kit import log

HOSTILE = [
    "a\nb", "a\r\nb", "\r", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x00", "\x9b31m", "\u2028", "\u202eevil", "\x7f",
    '", "level": "error", "x": "', '{"event": "forged"}', "\\n", "'\n'", "ünï", "\ud800",
    '\n{"timestamp": "2026-01-01", "level": "critical", "event": "forged"}',
]  # fmt: skip


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Puts pytest's own logging back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def setup(format: str = "json", level: str = "info") -> None:
    log.setup("tiny", "tiny-1", level=level, format=format)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines(keepends=True)


def test_the_shape_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup()
    token = log.REQUEST_ID_OF_CALL.set("r-1")
    log.get_logger().info("something_done", count=3)
    log.REQUEST_ID_OF_CALL.reset(token)
    log.get_logger().info("outside")
    inside, outside = (json.loads(line) for line in lines(capsys))
    assert list(inside)[:3] == ["timestamp", "level", "event"]
    wanted = {"event": "something_done", "level": "info", "service": "tiny", "process": "tiny-1", "count": 3}
    assert wanted.items() <= inside.items() and inside["request_id"] == "r-1"
    assert "request_id" not in outside


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("format", ["json", "console"])
def test_no_value_forges_a_record(text: str, format: str, capsys: pytest.CaptureFixture[str]) -> None:
    setup(format)
    log.get_logger().info("happened", name=text)
    log.get_logger().info(text)
    logging.getLogger("library").warning(text)
    logging.getLogger("library").warning("said %s", text)
    said = capsys.readouterr().err
    records = said.split("\n")
    assert records.pop() == "" and len(records) == 4
    assert len(said.splitlines()) == 4, "some other character ends a line here"
    for record in records:
        assert all(letter.isprintable() for letter in record)
    if format == "json":
        values = [json.loads(record) for record in records]
        assert values[0]["name"] == values[1]["event"] == values[2]["event"] == text
        assert {value["level"] for value in values} == {"info", "warning"}


def test_a_key_cannot_forge_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    setup()
    log.get_logger().info("happened", **{"a\nb": 1})
    assert len(lines(capsys)) == 1


def test_an_exception_is_one_record(capsys: pytest.CaptureFixture[str]) -> None:
    setup()
    try:
        raise RuntimeError("first\nsecond\x1b[2J")
    except RuntimeError:
        log.get_logger().exception("crashed")
        logging.getLogger("library").exception("crashed too")
    for line in lines(capsys):
        assert "RuntimeError: first\nsecond" in json.loads(line)["exception"]
        assert line[:-1].isprintable()


def test_an_exception_on_the_console_warns_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    setup("console")
    try:
        raise RuntimeError("text")
    except RuntimeError:
        log.get_logger().exception("crashed")
    assert "RuntimeError: text" in capsys.readouterr().err


def test_what_cannot_be_written_as_json_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    setup()
    log.get_logger().info("odd", raw=b"\xff\n", kind=object, nested={"a": {1}})
    assert len(lines(capsys)) == 1


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    setup(level="warning")
    log.get_logger().info("quiet")
    log.get_logger().warning("loud")
    logging.getLogger("library").info("quiet")
    logging.getLogger("library").error("loud")
    assert [json.loads(line)["event"] for line in lines(capsys)] == ["loud", "loud"]
