"""Sampling to the byte, parents and children, and the file of spans."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from penstock.errors import NotFound
from penstock.kit import telemetry
from penstock.kit.spans import FileExporter, OtlpExporter

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tracing into a file, at a ratio of 0: only what a caller asks for."""
    for name in ("_ratio", "_processors"):
        monkeypatch.setattr(telemetry, name, getattr(telemetry, name))
    path = tmp_path / "sub" / "traces.jsonl"
    telemetry.setup("tiny", "tiny-1", otlp_endpoint="", trace_file=str(path), trace_ratio=0.0)
    yield path
    telemetry.shutdown()


def written(path: Path) -> list[dict[str, object]]:
    telemetry.shutdown()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_without_a_destination_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_processors", [])
    monkeypatch.setattr(telemetry, "_ratio", 1.0)
    telemetry.setup("tiny", "tiny-1", otlp_endpoint="", trace_file="", trace_ratio=1.0)
    assert not telemetry.sampled({"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert not telemetry.sampled({})


@pytest.mark.parametrize("flags", range(256))
def test_the_callers_decision_is_the_lowest_bit(spans: Path, flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio in (0.0, 1.0):
        monkeypatch.setattr(telemetry, "_ratio", ratio)
        assert telemetry.sampled({"traceparent": f"00-{TRACE}-{SPAN}-{flags:02x}"}) is bool(flags & 1)


UNREADABLE = [
    "", "1", "x" * 54 + "1", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-001",
    f"00-{TRACE.upper()}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-0g", f"00_{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\n", f" 00-{TRACE}-{SPAN}-01",
    f"00-{TRACE[:-1]}g-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-extra",
]  # fmt: skip


@pytest.mark.parametrize("header", [None, *UNREADABLE])
def test_who_has_not_decided_is_sampled_by_chance(
    spans: Path, header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {} if header is None else {"traceparent": header}
    for draw, wanted in ((0.2499, True), (0.25, False)):
        monkeypatch.setattr(telemetry, "_ratio", 0.25)
        monkeypatch.setattr("random.random", lambda draw=draw: draw)
        assert telemetry.sampled(headers) is wanted


def test_the_ends_of_the_ratio(spans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ratio, draws in ((0.0, (0.0, 0.999)), (1.0, (0.0, 0.9999999999))):
        monkeypatch.setattr(telemetry, "_ratio", ratio)
        for draw in draws:
            monkeypatch.setattr("random.random", lambda draw=draw: draw)
            assert telemetry.sampled({}) is bool(ratio)


@pytest.mark.parametrize("header", [None, *UNREADABLE])
def test_where_the_process_before_has_decided_no_trace_means_no(
    spans: Path, header: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_ratio", 1.0)
    headers = {} if header is None else {"traceparent": header}
    assert telemetry.sampled(headers) and not telemetry.sampled(headers, decided=True)
    assert telemetry.sampled({"traceparent": f"00-{TRACE}-{SPAN}-01"}, decided=True)


def test_a_span_is_the_callers_child_and_the_next_hops_parent(spans: Path) -> None:
    with telemetry.span("tiny.work", {"traceparent": f"00-{TRACE}-{SPAN}-01"}, model="digits") as outer:
        onward = outer.traceparent
        assert telemetry.sampled({"traceparent": onward})
        telemetry.begin("tiny.inner", {"traceparent": onward}, links=[outer]).end()
    inner, whole = sorted(written(spans), key=lambda each: str(each["name"]))
    assert whole["parent_id"] == f"0x{SPAN}"
    assert whole["attributes"] == {"model": "digits"}
    assert onward == f"00-{TRACE}-{whole['context']['span_id'][2:]}-01"  # type: ignore[index]
    assert inner["parent_id"] == whole["context"]["span_id"]  # type: ignore[index]
    assert len(inner["links"]) == 1  # type: ignore[arg-type]
    assert whole["resource"]["attributes"]["service.instance.id"] == "tiny-1"  # type: ignore[index]


def test_what_failed_says_so_and_a_span_ends_once(spans: Path) -> None:
    with pytest.raises(NotFound), telemetry.span("tiny.work", {}):
        raise NotFound("there is no such thing")
    begun = telemetry.begin("tiny.work", {})
    begun.end()
    begun.end(NotFound("too late"))
    failed, well = written(spans)
    assert failed["status"] == {"status_code": "ERROR", "description": "NotFound: there is no such thing"}
    assert failed["events"][0]["attributes"]["exception.message"] == "there is no such thing"  # type: ignore[index]
    assert well["status"] == {"status_code": "UNSET"} and well["events"] == []
    assert failed["context"]["trace_id"] != well["context"]["trace_id"]  # type: ignore[index]


def test_an_unreadable_parent_is_no_parent(spans: Path) -> None:
    for header in UNREADABLE:
        with telemetry.span("tiny.work", {"traceparent": header}):
            pass
    assert {each["parent_id"] for each in written(spans)} == {None}


def test_the_environment_cannot_unsample_what_was_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    for name in ("_ratio", "_processors"):
        monkeypatch.setattr(telemetry, name, getattr(telemetry, name))
    path = tmp_path / "traces.jsonl"
    telemetry.setup("tiny", "tiny-1", otlp_endpoint="", trace_file=str(path), trace_ratio=1.0)
    with telemetry.span("tiny.work", {}):
        pass
    assert len(written(path)) == 1


def test_two_writers_of_one_file_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    exporters = [FileExporter(path, Resource({"service.name": "tiny"})) for _ in range(2)]
    # Longer than a buffer.
    long = [telemetry.begin("x" * 100_000, {}) for _ in range(3)]

    def write(exporter: FileExporter) -> None:
        for _ in range(10):
            exporter.export(long)

    threads = [threading.Thread(target=write, args=(exporter,)) for exporter in exporters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for exporter in exporters:
        exporter.shutdown()
    lines = path.read_text().splitlines()
    assert len(lines) == 60 and {len(json.loads(line)["name"]) for line in lines} == {100_000}


def test_the_file_says_what_opentelemetry_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the very spans that OTLP gets."""
    taken: list[Any] = []
    monkeypatch.setattr(telemetry, "_processors", [SimpleNamespace(on_end=taken.append)])
    outer = telemetry.begin("tiny.work", {"traceparent": f"00-{TRACE}-{SPAN}-01"}, model="digits", version=3)
    inner = telemetry.begin("tiny.batch", {"traceparent": outer.traceparent}, links=[outer])
    inner.end(NotFound("there is no such thing"))
    outer.end()
    resource = Resource({"service.name": "tiny", "service.instance.id": "tiny-1"})
    path = tmp_path / "traces.jsonl"
    exporter = FileExporter(path, resource)
    exporter.export(taken)
    exporter.shutdown()
    sent: list[ReadableSpan] = []
    otlp = OtlpExporter("http://127.0.0.1:1", resource)
    monkeypatch.setattr(otlp, "_exporter", SimpleNamespace(export=sent.extend))
    otlp.export(taken)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [json.loads(s.to_json()) for s in sent]
