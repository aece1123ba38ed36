"""Traces by hand, cheap when not wanted, and not dear when they are.

Instrumentation libraries cost 130–190 µs a request even at ratio 0 (performance notes), so the data path decides
first, from the bytes of `traceparent`, and begins a span only for a sampled call. A caller's decision is obeyed; a call
without one is sampled at `trace_ratio`, at the first process that it meets: the gateway tells a worker by the trace
that it sends, or by sending none.

One call in a hundred runs through code that is cold, and costs several times what a loop over it shows. So a span here
is a handful of values until it has ended; then OpenTelemetry's own exporters get it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

TRACEPARENT: Final = "traceparent"
_PATTERN = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("penstock")
_OK: Final = Status(StatusCode.UNSET)

_ratio = 0.01
_resource: Resource | None = None
_processors: list[SpanProcessor] = []


def setup(service: str, process: str, *, otlp_endpoint: str, trace_file: str, trace_ratio: float) -> None:
    """Starts the process's tracing; without an endpoint or a file no span is ever begun."""
    global _ratio, _resource
    _processors.clear()
    _ratio = trace_ratio if otlp_endpoint or trace_file else 0.0
    _resource = Resource.create({"service.name": service, "service.instance.id": process})
    if trace_file:
        _processors.append(BatchSpanProcessor(FileExporter(Path(trace_file)), schedule_delay_millis=500))
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        _processors.append(BatchSpanProcessor(OTLPSpanExporter(otlp_endpoint)))


def shutdown() -> None:
    """Sends what is left and stops."""
    while _processors:
        _processors.pop().shutdown()


def sampled(headers: Mapping[str, str], *, decided: bool = False) -> bool:
    """Whether this call is to be traced: the caller's decision, or chance where the caller made none. decided: the
    process before this one has had the choice, so no trace means no."""
    if not _processors:
        return False
    parent = headers.get(TRACEPARENT)
    if parent and _PATTERN.fullmatch(parent):
        # The flags are the last two hex digits (W3C Trace Context, section 3.2.2.5); bit 0 is "sampled".
        return parent[-1] in "13579bdf"
    # A header that cannot be read decides nothing (section 4.3).
    return not decided and random.random() < _ratio


class Span:
    """What a process did for one call. Whoever began it ends it, once. attributes: added to until then."""

    __slots__ = ("_kind", "_links", "_name", "_parent", "_started", "attributes", "context", "ended")

    def __init__(
        self, name: str, headers: Mapping[str, str], kind: SpanKind, links: Sequence[Span], attributes: dict[str, Any]
    ) -> None:
        found = _PATTERN.fullmatch(headers.get(TRACEPARENT, ""))
        self._parent: SpanContext | None = None
        trace_id = random.getrandbits(128) | 1
        if found is not None:
            trace_id = int(found[1], 16)
            self._parent = SpanContext(trace_id, int(found[2], 16), is_remote=True, trace_flags=_SAMPLED)
        self.context = SpanContext(trace_id, random.getrandbits(64) | 1, is_remote=False, trace_flags=_SAMPLED)
        self._name, self._kind, self._links, self.attributes = name, kind, links, attributes
        self._started = time.time_ns()
        self.ended = False

    @property
    def traceparent(self) -> str:
        """The header that makes the next hop a child of this span."""
        return f"00-{self.context.trace_id:032x}-{self.context.span_id:016x}-01"

    def end(self, problem: BaseException | None = None) -> None:
        """The work is done, or has failed by this problem. Nothing if it has ended already."""
        if self.ended:
            return
        self.ended = True
        status = _OK
        events: tuple[Event, ...] = ()
        if problem is not None:
            said = {"exception.type": type(problem).__name__, "exception.message": str(problem)}
            status, events = (
                Status(StatusCode.ERROR, f"{type(problem).__name__}: {problem}"),
                (Event("exception", said),),
            )
        done = ReadableSpan(
            self._name,
            self.context,
            self._parent,
            _resource,
            self.attributes,
            events,
            [Link(linked.context) for linked in self._links],
            self._kind,
            status=status,
            start_time=self._started,
            end_time=time.time_ns(),
            instrumentation_scope=_SCOPE,
        )
        for processor in _processors:
            processor.on_end(done)


def begin(name: str, headers: Mapping[str, str], *, links: Sequence[Span] = (), **attributes: Any) -> Span:
    """A span of this process under the caller's; `links` are spans that it serves, such as the requests of a batch."""
    return Span(name, headers, SpanKind.INTERNAL if links else SpanKind.SERVER, links, attributes)


@contextmanager
def span(name: str, headers: Mapping[str, str], **attributes: Any) -> Iterator[Span]:
    """A span for as long as the context lasts. What is logged inside carries its trace."""
    begun = begin(name, headers, **attributes)
    token = contexts.attach(trace.set_span_in_context(NonRecordingSpan(begun.context)))
    try:
        yield begun
    except BaseException as problem:
        begun.end(problem)
        raise
    finally:
        contexts.detach(token)
        begun.end()


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
