"""Spans of time as people write them: `50ms`, `30s`, `10m`, `2h`, `1.5s`."""

from __future__ import annotations

import re
from typing import Final

from penstock.errors import InvalidArgument

_TEXT = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?(ms|s|m|h|d)")
_UNITS: Final = {"d": 86_400 * 10**9, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6}


def nanoseconds(text: str, field: str = "duration") -> int:
    """The span in nanoseconds; raises InvalidArgument for anything but a number with a unit."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InvalidArgument(
            f"{field}: {text[:40]!a} is no span of time; write a number with ms, s, m, h or d, such as 50ms or 10m",
            field=field,
        )
    whole, fraction, unit = found.group(1), found.group(2) or "", _UNITS[found.group(3)]
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def words(span: int) -> str:
    """Nanoseconds as text that `nanoseconds` reads: in the largest unit of which they are a whole number."""
    for unit, size in _UNITS.items():
        if span and span % size == 0:
            return f"{span // size}{unit}"
    return f"{span / 10**9:.9f}".rstrip("0").rstrip(".") + "s"
