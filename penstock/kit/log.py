"""One shape of log for every service: structlog, one JSON object per line on stderr.

Each line carries time, level, event, service and process id, and the request id and trace id of the call that it
belongs to. Values are escaped, by the JSON writer or for the console, so no caller can forge a line.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog
from opentelemetry import trace

from penstock.wire.call import REQUEST_ID_OF_CALL as REQUEST_ID_OF_CALL


def get_logger() -> Any:
    """The process's logger: `log.info("event_name", key=value)`."""
    return structlog.get_logger()


def setup(service: str, process: str, *, level: str, format: str) -> None:
    """Configures logging of the whole process, libraries included (warnings and worse)."""
    number = getattr(logging, level.upper(), logging.INFO)
    rendering: list[Any] = [structlog.processors.JSONRenderer(sort_keys=False)]
    if format == "console":
        # Its colours apart, nothing that a caller sent may steer the terminal or begin a line.
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
        rendering = [_escaped, console]

    def add_process(_: Any, __: str, event: Any) -> Any:
        return {"service": service, "process": process, **event}

    shared: list[Any] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.add_log_level,
        add_process,
        _add_call,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, _event_first, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _event_first, *rendering],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _add_call(_: Any, __: str, event: Any) -> Any:
    if request_id := REQUEST_ID_OF_CALL.get():
        event.setdefault("request_id", request_id)
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event.setdefault("trace_id", f"{span.trace_id:032x}")
    return event


def _event_first(_: Any, __: str, event: Any) -> Any:
    """time, level, event, then the rest: what a person reads first comes first."""
    head = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return {**head, **event}


_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escaped(_: Any, __: str, event: Any) -> Any:
    """Control characters of every text in Python's notation, but for tracebacks, which are lines."""
    return {
        key: _CONTROL.sub(lambda match: repr(match[0])[1:-1], value)
        if isinstance(value, str) and key != "exception"
        else value
        for key, value in event.items()
    }
