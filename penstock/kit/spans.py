"""A span while its call lasts, and what is made of it afterwards: a line of a file, or what OTLP sends.

`Span` is small because its call pays for it with cold caches; exporters run in a thread of their own, on many spans
together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("penstock")


class Span:
    """What a process did for one call.

    Attributes:
        trace_id, span_id, parent_id: lower-case hex as in `traceparent`; parent_id is empty for the first of a trace.
        links: the spans that it serves; one that has any is of kind INTERNAL, others are SERVER.
        attributes: added to until the span has ended.
        started, ended: nanoseconds since the epoch; ended is 0 until then.
        problem: type and text of what made it fail, or None.
    """

    __slots__ = (
        "_done", "attributes", "ended", "links", "name", "parent_id", "problem", "span_id", "started", "trace_id",
    )  # fmt: skip

    context: Final = SpanContext(1, 1, is_remote=False, trace_flags=_SAMPLED)
    """All that BatchSpanProcessor asks of a span: that it was sampled. Its own is `whole_context`."""

    def __init__(
        self,
        name: str,
        trace_id: str,
        span_id: str,
        parent_id: str,
        links: Sequence[Span],
        attributes: dict[str, Any],
        started: int,
        done: Callable[[Span], None],
    ) -> None:
        """done: called once, at the end."""
        self.name, self.trace_id, self.span_id, self.parent_id = name, trace_id, span_id, parent_id
        self.links, self.attributes, self.started, self._done = links, attributes, started, done
        self.ended = 0
        self.problem: tuple[str, str] | None = None

    @property
    def traceparent(self) -> str:
        """The header that makes the next hop a child of this span."""
        return f"00-{self.trace_id}-{self.span_id}-01"

    def end(self, problem: BaseException | None = None) -> None:
        """The work is done, or has failed by this problem. Nothing if it has ended already."""
        if self.ended:
            return
        self.ended = time.time_ns()
        if problem is not None:
            self.problem = type(problem).__name__, str(problem)
        self._done(self)

    def whole_context(self) -> SpanContext:
        """Its identity as OpenTelemetry has it."""
        return SpanContext(int(self.trace_id, 16), int(self.span_id, 16), is_remote=False, trace_flags=_SAMPLED)


class FileExporter(SpanExporter):
    """One JSON object per span and line, with the names that OpenTelemetry's own JSON has; several processes may append
    to the same file."""

    def __init__(self, path: Path, resource: Resource) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._end = f', "resource": {resource.to_json(indent=None)}}}\n'

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """spans: of class Span."""
        lines = [_described(span)[:-1] + self._end for span in spans]
        # One write, so that lines of several processes do not run into each other.
        self._file.write("".join(lines).encode())
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()


class OtlpExporter(SpanExporter):
    """OpenTelemetry's own exporter over gRPC, given what it knows."""

    def __init__(self, endpoint: str, resource: Resource) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        self._exporter = OTLPSpanExporter(endpoint)
        self._resource = resource

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        """spans: of class Span."""
        return self._exporter.export([self._readable(span) for span in spans])

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _readable(self, span: Span) -> ReadableSpan:
        context, parent = span.whole_context(), None
        if span.parent_id:
            parent = SpanContext(context.trace_id, int(span.parent_id, 16), is_remote=True, trace_flags=_SAMPLED)
        status, events = Status(StatusCode.UNSET), []
        if span.problem is not None:
            kind, text = span.problem
            status = Status(StatusCode.ERROR, f"{kind}: {text}")
            events = [Event("exception", {"exception.type": kind, "exception.message": text}, span.ended)]
        return ReadableSpan(
            span.name,
            context,
            parent,
            self._resource,
            span.attributes,
            events,
            [Link(linked.whole_context()) for linked in span.links],
            _kind(span),
            status=status,
            start_time=span.started,
            end_time=span.ended,
            instrumentation_scope=_SCOPE,
        )


def _described(span: Span) -> str:
    status, events = {"status_code": "UNSET"}, []
    if span.problem is not None:
        kind, text = span.problem
        status = {"status_code": "ERROR", "description": f"{kind}: {text}"}
        attributes = {"exception.type": kind, "exception.message": text}
        events = [{"name": "exception", "timestamp": _moment(span.ended), "attributes": attributes}]
    return json.dumps(
        {
            "name": span.name,
            "context": _identity(span),
            "kind": str(_kind(span)),
            "parent_id": f"0x{span.parent_id}" if span.parent_id else None,
            "start_time": _moment(span.started),
            "end_time": _moment(span.ended),
            "status": status,
            "attributes": span.attributes,
            "events": events,
            "links": [{"context": _identity(linked), "attributes": None} for linked in span.links],
        }
    )


def _kind(span: Span) -> SpanKind:
    return SpanKind.INTERNAL if span.links else SpanKind.SERVER


def _identity(span: Span) -> dict[str, str]:
    return {"trace_id": f"0x{span.trace_id}", "span_id": f"0x{span.span_id}", "trace_state": "[]"}


def _moment(nanoseconds: int) -> str:
    moment = datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
