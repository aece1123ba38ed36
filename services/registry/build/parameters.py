"""Parameters of a step: a frozen dataclass from a document, strictly, and back as one canonical text (pure).

Known types: bool, int, float, str, Literal, X | None, tuple[X, ...], Mapping[str, X] and dataclasses of these. A key
that is not a field is an error, and so is a value of another type: a misspelt parameter must never mean "default".
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from penstock.errors import InvalidArgument

P = TypeVar("P")

MAX_ITEMS = 10_000


def parse(kind: type[P], document: Mapping[str, Any], where: str = "") -> P:
    """An instance of the dataclass `kind`; raises InvalidArgument with the field. where: prefix of the paths."""
    if not isinstance(document, Mapping):
        raise _wrong(where.rstrip("."), "a mapping is needed")
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(cast(Any, kind))}
    unknown = sorted(str(key) for key in document if key not in fields)
    if unknown:
        raise _wrong(f"{where}{unknown[0]}", f"unknown; there are {', '.join(fields) or 'none'}")
    values = {}
    for name, each in fields.items():
        if name in document:
            values[name] = _value(hints[name], document[name], f"{where}{name}")
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise _wrong(f"{where}{name}", "is needed")
    try:
        return kind(**values)
    except InvalidArgument as error:  # of the dataclass's own checks, which know their field but not where they stand
        raise _wrong(f"{where}{error.field}".rstrip("."), error.message) from None


def canonical(value: Any) -> str:
    """One JSON text for an instance: keys in order, defaults written out."""
    return json.dumps(dataclasses.asdict(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [each for each in typing.get_args(hint) if each is not type(None)]
        return None if value is None else _value(inner[0], value, where)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise _wrong(where, f"one of {', '.join(map(str, choices))} is needed")
        return value
    if origin is tuple:
        return _items(typing.get_args(hint)[0], value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or len(value) > MAX_ITEMS or not all(isinstance(key, str) for key in value):
            raise _wrong(where, "a mapping of names is needed")
        inside = typing.get_args(hint)[1]
        return {key: _value(inside, each, f"{where}.{key}") for key, each in value.items()}
    if dataclasses.is_dataclass(hint):
        return parse(cast(type[Any], hint), value, f"{where}.")
    return _plain(hint, value, where)


def _items(inside: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_ITEMS:
        raise _wrong(where, f"a list of at most {MAX_ITEMS} is needed")
    return tuple(_value(inside, each, f"{where}[{index}]") for index, each in enumerate(value))


def _plain(hint: Any, value: Any, where: str) -> Any:
    if hint is float and type(value) in (int, float):
        if not math.isfinite(value):
            raise _wrong(where, "a finite number is needed")
        return float(value)
    if hint not in (bool, int, float, str):
        raise TypeError(f"{where}: {hint} is no type of a parameter")
    if type(value) is not hint:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise _wrong(where, f"{words[hint]} is needed")
    return value


def _wrong(where: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: {text}" if where else text, field=where)
