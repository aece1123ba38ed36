"""JSON schemas: those of the inference protocol, written down, and those of our messages, derived from the messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from penstock.tensors import DATATYPES

from .fields import Field, body_schema
from .messages import is_map

Json = dict[str, Any]


def _object(properties: Json, required: Sequence[str] = ()) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


_TEXT: Final[Json] = {"type": "string"}
_FLAG: Final[Json] = {"type": "boolean"}
_PARAMETERS: Final[Json] = {
    "type": "object",
    "additionalProperties": {"oneOf": [{"type": "boolean"}, {"type": "number"}, {"type": "string"}]},
}
_DATA: Final[Json] = {
    "type": "array",
    "items": {},
    "description": "Row-major, flat or nested as `shape` says; not for FP16 and BF16, which travel as binary.",
}
_TENSOR: Final = {
    "name": _TEXT,
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
    "datatype": {"type": "string", "enum": list(DATATYPES)},
    "parameters": {**_PARAMETERS, "description": "`binary_data_size` in bytes, or shared memory, instead of `data`."},
    "data": _DATA,
}

LIVE: Final = _object({"live": _FLAG}, ["live"])
READY: Final = _object({"ready": _FLAG}, ["ready"])
MODEL_READY: Final = _object({"name": _TEXT, "ready": _FLAG}, ["name", "ready"])
INFER_REQUEST: Final = _object(
    {
        "id": {"type": "string", "description": "Echoed in the answer."},
        "parameters": {**_PARAMETERS, "description": "`binary_data_output` true asks for all outputs as binary."},
        "inputs": {"type": "array", "items": _object(_TENSOR, ["name", "shape", "datatype"])},
        "outputs": {
            "type": "array",
            "description": "Outputs to answer with; all without. Parameter `binary_data` says how each should come.",
            "items": _object({"name": _TEXT, "parameters": _PARAMETERS}, ["name"]),
        },
    },
    ["inputs"],
)
INFER_RESPONSE: Final = _object(
    {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "parameters": _PARAMETERS,
        "outputs": {"type": "array", "items": _object(_TENSOR, ["name", "shape", "datatype"])},
    },
    ["model_name", "outputs"],
)
INDEX_REQUEST: Final = _object({"ready": {"type": "boolean", "description": "Only models that are ready."}})
INDEX: Final[Json] = {
    "type": "array",
    "items": _object({"name": _TEXT, "version": _TEXT, "state": _TEXT, "reason": _TEXT}, ["name"]),
}
REGIONS: Final[Json] = {
    "type": "array",
    "items": _object(
        {"name": _TEXT, "key": _TEXT, "offset": {"type": "integer"}, "byte_size": {"type": "integer"}},
        ["name", "key", "offset", "byte_size"],
    ),
}
REPOSITORY_REQUEST: Final = _object({"parameters": _PARAMETERS})
TEXT_STREAM: Final[Json] = {"type": "string"}
OCTETS: Final[Json] = {"type": "string", "format": "binary"}
OPENAPI: Final[Json] = {"type": "object"}
PLAIN_ERROR: Final = _object({"error": _TEXT}, ["error"])
ERROR: Final = _object(
    {
        "error": _object(
            {"code": _TEXT, "message": _TEXT, "field": _TEXT, "retryable": _FLAG, "request_id": _TEXT},
            ["code", "message", "field", "retryable", "request_id"],
        )
    },
    ["error"],
)


def of_fields(fields: Sequence[Field]) -> Json:
    """Schema of a management request."""
    return body_schema(fields)


class MessageSchemas:
    """Schemas of message classes, collected as components as they are asked for."""

    def __init__(self) -> None:
        self.components: Json = {}

    def of(self, message: type[Message]) -> Json:
        """A reference to the schema of what messages.to_plain makes of it."""
        return self._reference(message.DESCRIPTOR)

    def _reference(self, descriptor: Any) -> Json:
        if descriptor.full_name == "google.protobuf.Timestamp":
            return {"type": "string", "format": "date-time"}
        if descriptor.full_name == "google.protobuf.Duration":
            return {"type": "string", "description": "Seconds, such as `1.5s`."}
        name = descriptor.full_name
        if name not in self.components:
            self.components[name] = {}
            always = [field.name for field in descriptor.fields if field.is_repeated or not field.has_presence]
            self.components[name] = _object({field.name: self._field(field) for field in descriptor.fields}, always)
        return {"$ref": f"#/components/schemas/{name}"}

    def _field(self, field: Any) -> Json:
        if is_map(field):
            return {
                "type": "object",
                "additionalProperties": self._value(field.message_type.fields_by_name["value"]),
            }
        value = self._value(field)
        return {"type": "array", "items": value} if field.is_repeated else value

    def _value(self, field: Any) -> Json:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            return self._reference(field.message_type)
        if field.type == FieldDescriptor.TYPE_ENUM:
            return {"type": "string", "enum": list(field.enum_type.values_by_name)}
        return dict(_SCALARS[field.cpp_type])


_WIDE: Final[Json] = {"type": ["integer", "string"], "format": "int64"}
_SCALARS: Final[dict[int, Json]] = {
    FieldDescriptor.CPPTYPE_BOOL: _FLAG,
    FieldDescriptor.CPPTYPE_STRING: _TEXT,
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_INT64: _WIDE,
    FieldDescriptor.CPPTYPE_UINT64: _WIDE,
    FieldDescriptor.CPPTYPE_FLOAT: {"type": ["number", "null"]},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": ["number", "null"]},
}
