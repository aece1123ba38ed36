"""Types of arguments: what is wrong with one is told before anything is sent. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

from penstock import durations, names
from penstock.cli import windows
from penstock.errors import InvalidArgument

T = TypeVar("T")


def model(text: str) -> str:
    """A model name."""
    return _checked(lambda: names.model(text))


def alias(text: str) -> str:
    """An alias."""
    return _checked(lambda: names.alias(text))


def reference(text: str) -> tuple[str, int | str | None]:
    """NAME, NAME@VERSION or NAME@alias."""
    name, at, version = text.partition("@")
    return model(name), _checked(lambda: names.version_or_alias(version)) if at else None


def numbered(text: str) -> tuple[str, int]:
    """NAME@VERSION, by number."""
    name, version = reference(text)
    if not isinstance(version, int):
        raise argparse.ArgumentTypeError(f"{text!r} names no version number; write NAME@N, such as {name}@2")
    return name, version


def reference_or_numbered(text: str) -> tuple[str, int]:
    """NAME (version 0) or NAME@N."""
    return numbered(text) if "@" in text else (model(text), 0)


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return key, value


def positive(text: str) -> int:
    """An integer of at least 1."""
    if text.isdecimal() and len(text) <= 18 and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")


def count(text: str) -> int:
    """An integer of at least 0."""
    return 0 if text == "0" else positive(text)


def priority(text: str) -> int:
    """An integer from -100 to 100."""
    if text.removeprefix("-").isdecimal() and len(text) <= 4 and abs(int(text)) <= 100:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not an integer from -100 to 100")


def tenant(text: str) -> str:
    """A tenant's name."""
    return _checked(lambda: names.model(text, "tenant"))


def caller(text: str) -> str:
    """A caller's name, which his tenant has too."""
    return _checked(lambda: names.tenant(text, "NAME"))


def span(text: str) -> int:
    """A span of time, in nanoseconds."""
    return _checked(lambda: durations.nanoseconds(text, "span"))


def window(text: str) -> windows.Window:
    """A part of the week."""
    return _checked(lambda: windows.parse(text))


def target(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value < float("inf"):
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


def seconds(text: str) -> float:
    """A positive number of seconds."""
    return target(text)


def _checked(check: Callable[[], T]) -> T:
    try:
        return check()
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(error.message) from None
