"""What a management request may hold: one declaration reads it and describes it, so the two cannot differ. Pure.

Strict: an unknown key, a wrong type or a missing required value raises InvalidArgument with the field's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from penstock.errors import InvalidArgument
from penstock.reading import read

from .message_shapes import message_schema

TEXT: Final = "text"
INTEGER: Final = "integer"
NUMBER: Final = "number"
FLAG: Final = "flag"
TEXTS: Final = "texts"
LIST: Final = "list"
VERSION: Final = "version"
OBJECTS: Final = "objects"
MESSAGE: Final = "message"

_INT64: Final = (1 << 63) - 1
_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    TEXT: {"type": "string"},
    INTEGER: {"type": "integer", "format": "int64", "minimum": 0},
    NUMBER: {"type": "number", "minimum": 0},
    FLAG: {"type": "boolean"},
    TEXTS: {"type": "object", "additionalProperties": {"type": "string"}},
    LIST: {"type": "array", "items": {"type": "string"}},
    OBJECTS: {"type": "array", "items": {"type": "object"}},
    VERSION: {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]},
}
_WORDING: Final = {
    TEXT: "a string",
    INTEGER: "an integer from 0",
    NUMBER: "a number from 0",
    FLAG: "true or false",
    TEXTS: "an object of strings",
    LIST: "a list of strings",
    OBJECTS: "a list of objects",
    VERSION: "a version number or an alias",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One value of a request. kind: one of the constants above; maximum: of an integer; message: of a MESSAGE."""

    name: str
    kind: str
    description: str
    required: bool = False
    maximum: int = _INT64
    message: type[Message] | None = None


def read_body(document: object, fields: Sequence[Field]) -> dict[str, Any]:
    """The checked values of a JSON body, by name; absent ones (and null) are left out. A version comes as text."""
    if not isinstance(document, dict):
        raise InvalidArgument("body: must be a JSON object", field="body")
    known = {field.name: field for field in fields}
    for name in document:
        if name not in known:
            message = f"{name[:64]!r} is not a field here; known are {', '.join(known) or 'none'}"
            raise InvalidArgument(message, field=name[:64])
    values: dict[str, Any] = {}
    for field in fields:
        value = document.get(field.name)
        if value is not None:
            values[field.name] = _checked(value, field)
        elif field.required:
            raise InvalidArgument(f"{field.name}: missing", field=field.name)
    return values


def read_query(query: Mapping[str, str], fields: Sequence[Field]) -> dict[str, Any]:
    """The checked values of a query string, by name; integers and flags are parsed from their text."""
    document: dict[str, Any] = {}
    kinds = {field.name: field.kind for field in fields}
    for name, text in query.items():
        kind = kinds.get(name, TEXT)
        if kind == INTEGER and text.isascii() and text.isdigit() and len(text) <= 19:
            document[name] = int(text)
        elif kind == FLAG and text in ("true", "false"):
            document[name] = text == "true"
        else:
            document[name] = text
    return read_body(document, fields)


def body_schema(fields: Sequence[Field]) -> dict[str, Any]:
    """JSON schema of the body that `read_body` accepts."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {field.name: {**value_schema(field), "description": field.description} for field in fields},
        "additionalProperties": False,
    }
    required = [field.name for field in fields if field.required]
    return {**schema, "required": required} if required else schema


def value_schema(field: Field) -> dict[str, Any]:
    """JSON schema of one value."""
    if field.message is not None:
        return message_schema(field.message.DESCRIPTOR)
    schema = dict(_SCHEMAS[field.kind])
    return {**schema, "maximum": field.maximum} if field.kind == INTEGER and field.maximum != _INT64 else schema


def integer(text: str, name: str) -> int:
    """A positive integer out of a path; raises InvalidArgument otherwise."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        raise InvalidArgument(f"{name}: must be a positive integer", field=name)
    return int(text)


def _checked(value: object, field: Field) -> Any:
    if field.message is not None:
        return read(value, field.message, field.name)
    if field.kind == VERSION and isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _INT64:
        return str(value)
    if field.kind in (TEXT, VERSION) and isinstance(value, str):
        return value
    if field.kind == FLAG and isinstance(value, bool):
        return value
    if field.kind == INTEGER and isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= field.maximum:
        return value
    if field.kind == NUMBER and isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e300:
        return float(value)
    if field.kind == LIST and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    if field.kind == TEXTS and isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return value
    if field.kind == OBJECTS and isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return value
    bound = f" to {field.maximum}" if field.kind == INTEGER and field.maximum != _INT64 else ""
    raise InvalidArgument(f"{field.name}: must be {_WORDING[field.kind]}{bound}", field=field.name)
