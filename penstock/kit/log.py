"""One shape of log for every service: structlog, one JSON object per line on stderr.

Each line carries time, level, event, service and process id, and the request id and trace id of the call that it
belongs to. Values are escaped by the JSON writer, so no caller can forge a line.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from typing import Any

import structlog
from opentelemetry import trace

REQUEST_ID_OF_CALL: ContextVar[str] = ContextVar("request_id", default="")


def get_logger() -> Any:
    """The process's logger: `log.info("event_name", key=value)`."""
    return structlog.get_logger()


def setup(service: str, process: str, *, level: str, format: str) -> None:
    """Configures logging of the whole process, libraries included (warnings and worse)."""
    number = getattr(logging, level.upper(), logging.INFO)
    renderer: Any = structlog.processors.JSONRenderer(sort_keys=False)
    if format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())

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
        processors=[*shared, _event_first, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _event_first, renderer],
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
