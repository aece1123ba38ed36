"""Protobuf messages of ours as plain values for JSON. Pure; never used on what a caller sent.

Field names as in the proto; every field without presence is written, a message field only when it is set; enums by
name, timestamps as RFC 3339, spans of time as `1.5s`, bytes as base64. 64-bit integers are JSON numbers: always where
`exact` is False (the inference protocol does so), else only within ±(2**53 - 1) and as strings beyond, which JavaScript
could not hold.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_SAFE: Final = (1 << 53) - 1
_WIDE: Final = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


def to_plain(message: Message, *, exact: bool = True) -> dict[str, Any]:
    """The message as a dict that JSON can hold."""
    plain: dict[str, Any] = {}
    fields: Any = message.DESCRIPTOR.fields  # the C classes and the Python ones have different types
    for field in fields:
        value = getattr(message, field.name)
        if is_map(field):
            write = _writer(field.message_type.fields_by_name["value"], exact)
            plain[field.name] = {str(key): write(value[key]) for key in sorted(value)}
        elif field.is_repeated:
            write = _writer(field, exact)
            plain[field.name] = [write(item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            plain[field.name] = _writer(field, exact)(value)
    return plain


def is_map(field: Any) -> bool:
    """True for the descriptor of a map field."""
    return bool(field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry)


def _writer(field: Any, exact: bool) -> Callable[[Any], Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if field.message_type.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
            return lambda value: value.ToJsonString()
        return lambda value: to_plain(value, exact=exact)
    if field.type == FieldDescriptor.TYPE_ENUM:
        names = {number: entry.name for number, entry in field.enum_type.values_by_number.items()}
        return lambda value: names.get(value, str(value))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64encode(value).decode()
    if exact and field.cpp_type in _WIDE:
        return lambda value: value if -_SAFE <= value <= _SAFE else str(value)
    return lambda value: value
