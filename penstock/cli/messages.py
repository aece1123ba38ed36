"""Protobuf messages as plain values for --json and tables (pure).

Field names as in protos/, numbers as numbers (protobuf's own JSON makes text of 64-bit ones), enums by name, times in
RFC 3339, spans of time as `1.5s`; every field is there, so that a script needs no defaults. Of a oneof only the member
that is set.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def plain(message: Message) -> dict[str, Any]:
    """The message as a dict."""
    out: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            if field.containing_oneof is None:
                out[field.name] = None
            continue
        out[field.name] = _value(field, getattr(message, field.name))
    return out


def when(time: Timestamp) -> str:
    """A time for a table, in UTC to the second; empty when it is not set."""
    return time.ToJsonString()[:19].replace("T", " ") if time.seconds else ""


def _value(field: Any, value: Any) -> Any:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        item = entry.fields_by_name["value"]
        return {str(key): _single(item, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if isinstance(value, Timestamp | Duration):
        return value.ToJsonString()
    if isinstance(value, Message):
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return value
