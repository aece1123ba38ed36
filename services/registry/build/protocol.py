"""What a step's process and the registry say to each other: one JSON object a line, of bounded length (pure).

The process runs libraries over files of strangers, so what it says is checked like anything from outside: unknown
kinds, wrong types, names that are no role and lines without end all mean that it did not keep its word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .dag import Described, Input

MAX_LINE: Final = 1 << 20
MAX_TEXT: Final = 2000
MAX_FILES: Final = 64

_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,120}")


class Garbage(Exception):
    """A line that keeps no rule."""


@dataclass(frozen=True, slots=True)
class Told:
    """The steps that were asked about."""

    steps: tuple[Described, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """A line for the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """The part that is done, 0 to 1."""

    part: float


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a step that went well. files: role → name of a file in its folder; a path could lead elsewhere."""

    files: Mapping[str, str]
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of a step that did not. code: of penstock.errors; detail: for the operator's log only."""

    code: str
    message: str
    detail: str = ""


Message = Told | Said | Progressed | Done | Failed


def line(kind: str, **content: Any) -> bytes:
    """A message as it travels. Raises ValueError for what JSON cannot say or what is too long."""
    data = json.dumps({"kind": kind, **content}, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(data) > MAX_LINE:
        raise ValueError(f"{len(data)} bytes; a message has at most {MAX_LINE}")
    return data


def read(data: bytes) -> Message:
    """The message of a line; raises Garbage."""
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise Garbage
        return _READERS[content["kind"]](content)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise Garbage from None


def clean(text: str, *hidden: str) -> str:
    """One line of text for a public log: cut, escaped, and without these paths."""
    for path in hidden:
        text = text.replace(path, ".")
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text[:MAX_TEXT])


def _described(content: Any) -> Described:
    return Described(
        name=_text(content["name"]),
        version=int(content["version"]),
        canonical=_text(content["canonical"], MAX_LINE),
        tools={_text(name): _text(version) for name, version in content["tools"].items()},
        inputs=tuple(
            Input(_role(one["name"]), one["required"] is True, one["several"] is True) for one in content["inputs"]
        ),
        outputs=tuple(_role(name) for name in content["outputs"]),
        secrets=tuple(_role(name) for name in content["secrets"]),
    )


def _done(content: Any) -> Done:
    files = {_role(role): _file(name) for role, name in content["files"].items()}
    if len(files) > MAX_FILES or not isinstance(content["report"], dict):
        raise Garbage
    return Done(files, content["report"])


def _failed(content: Any) -> Failed:
    return Failed(_text(content["code"]), _text(content["message"], MAX_TEXT), str(content.get("detail", ""))[:20_000])


def _progressed(content: Any) -> Progressed:
    return Progressed(min(1.0, max(0.0, float(content["part"]))))


def _text(value: Any, limit: int = 200) -> str:
    if not isinstance(value, str):
        raise Garbage
    return value[:limit]


def _role(value: Any) -> str:
    if not isinstance(value, str) or not _ROLE.fullmatch(value):
        raise Garbage
    return value


def _file(value: Any) -> str:
    if not isinstance(value, str) or not _FILE.fullmatch(value):
        raise Garbage
    return value


_READERS: Final[dict[str, Callable[[Any], Message]]] = {
    "described": lambda content: Told(tuple(_described(one) for one in content["steps"])),
    "say": lambda content: Said(_text(content["text"], MAX_TEXT)),
    "progress": _progressed,
    "done": _done,
    "failed": _failed,
}
