"""A part of the week in one word, as `--schedule` and a deployment file have it: `mon-fri 08:00-18:00=3` (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from penstock.errors import InvalidArgument

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(r"(?:(\S+)\s+)?([0-9]{2}:[0-9]{2})-([0-9]{2}:[0-9]{2})\s*=\s*([0-9]{1,6})")


class Window(NamedTuple):
    """days: empty for every day; begin, end: HH:MM in UTC; replicas: at least, while it is open."""

    days: tuple[str, ...]
    begin: str
    end: str
    replicas: int


def parse(text: str, field: str = "schedule") -> Window:
    """The window; raises InvalidArgument."""
    found = _WINDOW.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(
            f"{field}: {text[:60]!a} is no window; write [DAYS ]HH:MM-HH:MM=REPLICAS, such as 'mon-fri 08:00-18:00=3'",
            field=field,
        )
    days, begin, end, replicas = found.groups()
    return Window(_days(days, field) if days else (), begin, end, int(replicas))


def words(days: Iterable[str], begin: str, end: str, replicas: int) -> str:
    """The text that `parse` reads."""
    days = list(days)
    numbers = [DAYS.index(day) for day in days if day in DAYS]
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(days))):
        named = f"{days[0]}-{days[-1]} "
    else:
        named = f"{','.join(days)} " if days else ""
    return f"{named}{begin}-{end}={replicas}"


def _days(text: str, field: str) -> tuple[str, ...]:
    found: list[str] = []
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        for day in (first, last) if dash else (first,):
            if day not in DAYS:
                known = ", ".join(DAYS)
                raise InvalidArgument(f"{field}: {day[:20]!a} is no day; use one of {known}", field=field)
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        found += [DAYS[(begin + step) % 7] for step in range(length + 1)]
    return tuple(dict.fromkeys(found))
