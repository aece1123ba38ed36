"""Plain values, as JSON and YAML give them, into messages of ours, strictly.

Names are those of the proto. Nothing is coerced and nothing unknown is passed over; a span of time is text such as
`50ms`. Every InvalidArgument names the field by its path, such as `scaling.schedule[0].begin`.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from penstock import durations
from penstock.errors import InvalidArgument

M = TypeVar("M", bound=Message)

DURATION: Final = "google.protobuf.Duration"
_WORDS: Final = {str: "text", bool: "true or false", int: "an integer", float: "a number"}
_KINDS: Final[dict[int, type]] = {
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
}


def read(value: object, message_class: type[M], path: str) -> M:
    """The message that a mapping describes; raises InvalidArgument. What is absent or null is left unset."""
    message = message_class()
    _fill(message, value, path)
    return message


def _fill(message: Message, value: object, path: str) -> None:
    if message.DESCRIPTOR.full_name == DURATION:
        if not isinstance(value, str):
            raise _wrong(path, "must be a span of time as text, such as 50ms or 10m", value)
        # Typed as Any: only this one has these fields.
        span: Any = message
        span.FromNanoseconds(durations.nanoseconds(value, path))
        return
    if not isinstance(value, dict):
        raise _wrong(path, "must be a mapping of fields", value)
    fields: Any = message.DESCRIPTOR.fields_by_name
    for name, item in value.items():
        if name not in fields:
            where = f"{path}.{str(name)[:64]}" if path else str(name)[:64]
            raise InvalidArgument(f"{where}: is not known here; known are {', '.join(fields)}", field=where)
        if item is not None:
            _set(message, fields[name], item, f"{path}.{name}" if path else name)


def _set(message: Message, field: Any, value: object, path: str) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(value, dict):
            raise _wrong(path, "must be a mapping of texts", value)
        kind = field.message_type.fields_by_name["value"]
        for key, item in value.items():
            getattr(message, field.name)[_scalar(field.message_type.fields_by_name["key"], key, path)] = _scalar(
                kind, item, f"{path}.{key}"
            )
    elif field.is_repeated:
        if not isinstance(value, list):
            raise _wrong(path, "must be a list", value)
        for number, item in enumerate(value):
            where = f"{path}[{number}]"
            if field.message_type is not None:
                _fill(getattr(message, field.name).add(), item, where)
            else:
                getattr(message, field.name).append(_scalar(field, item, where))
    elif field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        _fill(part, value, path)
    else:
        setattr(message, field.name, _scalar(field, value, path))


def _scalar(field: Any, value: object, path: str) -> Any:
    kind = _KINDS[field.cpp_type]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 53 else value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        hint = "; put it in quotes" if kind is str and isinstance(value, bool | int | float) else ""
        raise _wrong(path, f"must be {_WORDS[kind]}{hint}", value)
    if kind is int:
        bits = 31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63
        if not -(1 << bits) <= value < 1 << bits:  # type: ignore[operator]
            raise InvalidArgument(f"{path}: {value} does not fit", field=path)
    return value


def _wrong(path: str, text: str, value: object) -> InvalidArgument:
    shown = f", not {value!a:.40}" if isinstance(value, str | int | float) else ""
    return InvalidArgument(f"{path or 'it'}: {text}{shown}", field=path)
