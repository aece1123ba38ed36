"""Traces by hand, cheap when not wanted.

Instrumentation libraries cost 130–190 µs a request even at ratio 0 (performance notes), so the data path decides
first, from the bytes of `traceparent`, and builds a span only for a sampled call. A caller's decision is obeyed; a call
without one is sampled at `trace_ratio`, at the first process that it meets: the gateway tells a worker by the trace
that it sends, or by sending none.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags

TRACEPARENT: Final = "traceparent"
_PATTERN = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")

_ratio = 0.01
_tracer: trace.Tracer = trace.NoOpTracer()
_provider: TracerProvider | None = None


def setup(service: str, process: str, *, otlp_endpoint: str, trace_file: str, trace_ratio: float) -> None:
    """Starts the process's tracing; without an endpoint or a file no span is ever built."""
    global _ratio, _tracer, _provider
    if not otlp_endpoint and not trace_file:
        _ratio = 0.0
        return
    _ratio = trace_ratio
    # Sampling is decided before a span exists, so the provider keeps every span that is built.
    resource = Resource.create({"service.name": service, "service.instance.id": process})
    _provider = TracerProvider(sampler=ALWAYS_ON, resource=resource)
    if trace_file:
        _provider.add_span_processor(BatchSpanProcessor(FileExporter(Path(trace_file)), schedule_delay_millis=500))
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(otlp_endpoint)))
    _tracer = _provider.get_tracer("penstock")


def shutdown() -> None:
    """Sends what is left and stops."""
    if _provider is not None:
        _provider.shutdown()


def sampled(headers: Mapping[str, str], *, decided: bool = False) -> bool:
    """Whether this call is to be traced: the caller's decision, or chance where the caller made none. decided: the
    process before this one has had the choice, so no trace means no."""
    if _provider is None:
        return False
    parent = headers.get(TRACEPARENT)
    if parent and _PATTERN.fullmatch(parent):
        # The flags are the last two hex digits (W3C Trace Context, section 3.2.2.5); bit 0 is "sampled".
        return parent[-1] in "13579bdf"
    # A header that cannot be read decides nothing (section 4.3).
    return not decided and random.random() < _ratio


@contextmanager
def span(name: str, headers: Mapping[str, str], **attributes: Any) -> Iterator[Span]:
    """A server span under the caller's; call it only for a sampled call. It is the current span inside."""
    with _tracer.start_as_current_span(
        name, context=_context(headers), kind=SpanKind.SERVER, attributes=attributes or None
    ) as started:
        yield started


def server_span(name: str, headers: Mapping[str, str], **attributes: Any) -> Span:
    """As `span`, for a call that is served without a task: its caller ends it, with `end_span`."""
    return _tracer.start_span(name, context=_context(headers), kind=SpanKind.SERVER, attributes=attributes or None)


def end_span(span: Span, problem: BaseException | None = None) -> None:
    """Ends a span, by its problem if there was one."""
    if problem is not None:
        span.record_exception(problem)
        span.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(problem).__name__}: {problem}"))
    span.end()


def start_span(
    name: str, headers: Mapping[str, str], *, links: Sequence[Span] = (), start_ns: int | None = None, **attributes: Any
) -> Span:
    """A span that its caller ends; `links` are spans that it serves, such as the requests of a batch."""
    return _tracer.start_span(
        name,
        context=_context(headers),
        links=[trace.Link(linked.get_span_context()) for linked in links],
        start_time=start_ns,
        attributes=attributes or None,
    )


def traceparent_of(span: Span) -> str:
    """The header that makes the next hop a child of this span."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _context(headers: Mapping[str, str]) -> Any:
    found = _PATTERN.fullmatch(headers.get(TRACEPARENT, ""))
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    parent = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return trace.set_span_in_context(NonRecordingSpan(parent))


class FileExporter(SpanExporter):
    """One JSON object per span and line; several processes may append to the same file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = [each.to_json(indent=None) + "\n" for each in spans]
        # One write, so that lines of several processes do not run into each other.
        self._file.write("".join(lines).encode())
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self._file.close()
