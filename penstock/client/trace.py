"""The trace that a call belongs to, as a W3C `traceparent` header (https://www.w3.org/TR/trace-context/)."""

from __future__ import annotations

import sys


def current_traceparent() -> str | None:
    """The caller's current OpenTelemetry span, or None.

    OpenTelemetry is never imported here: a caller who has a span has it in `sys.modules` already.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
