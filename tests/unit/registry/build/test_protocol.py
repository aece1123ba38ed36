"""What a step's process may say, and what it may not."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.build import protocol
from services.registry.build.protocol import Done, Failed, Garbage, Progressed, Said


def test_messages_travel() -> None:
    assert protocol.read(protocol.line("say", text="hello")) == Said("hello")
    assert protocol.read(protocol.line("progress", part=0.5)) == Progressed(0.5)
    assert protocol.read(protocol.line("done", files={"model": "m.onnx"}, report={"a": 1})) == Done(
        {"model": "m.onnx"}, {"a": 1}
    )
    assert protocol.read(protocol.line("failed", code="INTERNAL", message="no", detail="d")) == Failed(
        "INTERNAL", "no", "d"
    )


@pytest.mark.parametrize(
    "line",
    [
        b"", b"\x00\xff", b"[]", b"{}", b'{"kind":"what"}', b'{"kind":["say"]}', b'{"kind":"say"}',
        b'{"kind":"say","text":5}', b'{"kind":"progress","part":"x"}', b'{"kind":"done","files":{},"report":[]}',
        b'{"kind":"done","files":{"model":"../../etc/passwd"},"report":{}}',
        b'{"kind":"done","files":{"model":"/etc/passwd"},"report":{}}',
        b'{"kind":"done","files":{"model":"a/b"},"report":{}}',
        b'{"kind":"done","files":{"../model":"b"},"report":{}}',
        b'{"kind":"done","files":["a"],"report":{}}', b'{"kind":"described","steps":[{}]}',
        b'{"kind":"say","text":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_garbage(line: bytes) -> None:
    with pytest.raises(Garbage):
        protocol.read(line)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=100)
def test_bytes_are_a_message_or_garbage(line: bytes) -> None:
    with contextlib.suppress(Garbage):
        protocol.read(line)


def test_progress_is_a_part() -> None:
    assert protocol.read(b'{"kind":"progress","part":7}') == Progressed(1.0)
    assert protocol.read(b'{"kind":"progress","part":-1}') == Progressed(0.0)
    assert protocol.read(b'{"kind":"progress","part":NaN}') == Progressed(0.0)


def test_lines_of_the_log_are_public() -> None:
    shown = protocol.clean("\x1b[2Jat /secret/place/x\r" + "a" * 3000, "/secret/place")
    assert shown.startswith("\\x1b[2Jat ./x\\x0d") and len(shown) < 2100
