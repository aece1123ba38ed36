"""JSON schema of what `penstock.reading` accepts for a message. Pure."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from penstock.reading import DURATION

from .messages import is_map

_SCALARS: Final[dict[int, dict[str, Any]]] = {
    FieldDescriptor.CPPTYPE_STRING: {"type": "string"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer", "format": "int64"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
}


def message_schema(descriptor: Any) -> dict[str, Any]:
    """The schema, whole: it refers to no other."""
    if descriptor.full_name == DURATION:
        return {"type": "string", "description": "A number with ms, s, m, h or d, such as `50ms` or `10m`."}
    properties = {field.name: _field(field) for field in descriptor.fields}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _field(field: Any) -> dict[str, Any]:
    if is_map(field):
        return {"type": "object", "additionalProperties": _value(field.message_type.fields_by_name["value"])}
    return {"type": "array", "items": _value(field)} if field.is_repeated else _value(field)


def _value(field: Any) -> dict[str, Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return message_schema(field.message_type)
    return dict(_SCALARS[field.cpp_type])
