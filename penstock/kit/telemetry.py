"""Traces by hand, cheap when not wanted, and not dear when they are.

Instrumentation libraries cost 130–190 µs a request even at ratio 0 (performance notes), so the data path decides
first, from the bytes of `traceparent`, and begins a span only for a sampled call. A caller's decision is obeyed; a call
without one is sampled at `trace_ratio`, at the first process that it meets: the gateway tells a worker by the trace
that it sends, or by sending none.

One call in a hundred runs through code that is cold, and costs several times what a loop over it shows. So a span is a
handful of texts and numbers for as long as its call lasts. OpenTelemetry's processor collects the spans; what they are
written as is made of them later, many at a time (penstock/kit/spans.py).
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import NonRecordingSpan

from .spans import FileExporter, OtlpExporter, Span

TRACEPARENT: Final = "traceparent"
_PATTERN = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_ratio = 0.01
_processors: list[SpanProcessor] = []


def setup(service: str, process: str, *, otlp_endpoint: str, trace_file: str, trace_ratio: float) -> None:
    """Starts the process's tracing; without an endpoint or a file no span is ever begun."""
    global _ratio
    _processors.clear()
    _ratio = trace_ratio if otlp_endpoint or trace_file else 0.0
    resource = Resource.create({"service.name": service, "service.instance.id": process})
    if trace_file:
        exporter = FileExporter(Path(trace_file), resource)
        _processors.append(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    if otlp_endpoint:
        _processors.append(BatchSpanProcessor(OtlpExporter(otlp_endpoint, resource)))


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


def begin(name: str, headers: Mapping[str, str], *, links: Sequence[Span] = (), **attributes: Any) -> Span:
    """A span of this process under the caller's; `links` are spans that it serves, such as the requests of a batch.
    Whoever begins it ends it, once."""
    parent = headers.get(TRACEPARENT)
    found = _PATTERN.fullmatch(parent) if parent else None
    if found is not None:
        trace_id, parent_id, _ = found.groups()
    else:
        trace_id, parent_id = f"{random.getrandbits(128) | 1:032x}", ""
    span_id = f"{random.getrandbits(64) | 1:016x}"
    return Span(name, trace_id, span_id, parent_id, links, attributes, time.time_ns(), _ended)


def _ended(span: Span) -> None:
    for processor in _processors:
        # It asks a span whether it was sampled and hands it to our exporter.
        processor.on_end(cast(ReadableSpan, span))


@contextmanager
def span(name: str, headers: Mapping[str, str], **attributes: Any) -> Iterator[Span]:
    """A span for as long as the context lasts. What is logged inside carries its trace."""
    begun = begin(name, headers, **attributes)
    token = contexts.attach(trace.set_span_in_context(NonRecordingSpan(begun.whole_context())))
    try:
        yield begun
    except BaseException as problem:
        begun.end(problem)
        raise
    finally:
        contexts.detach(token)
        begun.end()
