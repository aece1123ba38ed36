"""logs: what the processes of a local run have written, last lines first together, then as they come.

A line is JSON (penstock.kit.log); anything else, such as the traceback of a process that could not start, is shown as
it is.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from penstock.cli.parser import NothingHere
from penstock.cli.show import Screen

POLL_SECONDS: Final = 0.2
_STYLES: Final = {"debug": "dim", "info": "", "warning": "yellow", "error": "red", "critical": "bold red"}
_HEAD: Final = ("timestamp", "level", "event", "service", "process")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log. source: the process; entry: its JSON, None when it is none."""

    source: str
    text: str
    entry: dict[str, Any] | None

    @classmethod
    def read(cls, source: str, text: str) -> Line:
        """Reads a line without its end."""
        try:
            entry = json.loads(text) if text.startswith("{") else None
        except ValueError:
            entry = None
        return cls(source, text, entry)

    @property
    def time(self) -> str:
        """Its timestamp; empty when it has none."""
        return str(self.entry.get("timestamp", "")) if self.entry else ""


class Tail:
    """One growing file. Reads whole lines only; begins again when the file was replaced or cut."""

    def __init__(self, path: Path) -> None:
        self.source = path.stem
        self._path = path
        self._file: TextIO = path.open(encoding="utf-8", errors="replace")
        self._rest = ""

    def last(self, count: int) -> list[Line]:
        """The last `count` lines; reading goes on after them."""
        return list(deque(self.new(), maxlen=count))

    def new(self) -> Iterator[Line]:
        """Lines written since the last time."""
        if self._was_replaced():
            self._file.close()
            self._file, self._rest = self._path.open(encoding="utf-8", errors="replace"), ""
        while text := self._file.readline():
            self._rest += text
            if self._rest.endswith("\n"):
                line, self._rest = self._rest[:-1], ""
                yield Line.read(self.source, line)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _was_replaced(self) -> bool:
        try:
            now, opened = self._path.stat(), os.fstat(self._file.fileno())
        except FileNotFoundError:
            return False
        return now.st_ino != opened.st_ino or now.st_size < self._file.tell()


def logs(args: argparse.Namespace, screen: Screen) -> int:
    """Shows the last lines of every process in the order of time, and follows on demand."""
    folder = Path(os.environ.get("PENSTOCK_STATE_DIR") or ".penstock") / "logs"
    tails = {path: Tail(path) for path in log_files(folder, args.service)}
    if not tails:
        which = f" of {args.service}" if args.service else ""
        raise NothingHere(f"no logs{which} in {folder}; PENSTOCK_STATE_DIR names the folder of a local run")
    try:
        _write(sort_lines([tail.last(args.lines) for tail in tails.values()]), screen)
        while args.follow:
            screen.flush()
            time.sleep(POLL_SECONDS)
            for path in log_files(folder, args.service):
                if path not in tails:
                    tails[path] = Tail(path)
            _write(sort_lines([list(tail.new()) for tail in tails.values()]), screen)
    finally:
        for tail in tails.values():
            tail.close()
    return 0


def log_files(folder: Path, service: str) -> list[Path]:
    """Log files of a process by name, or of a service by kind (`worker` means worker-1, worker-2 ...)."""
    files = sorted(folder.glob("*.log"))
    if not service:
        return files
    exact = [path for path in files if path.stem == service]
    return exact or [path for path in files if path.stem.startswith(f"{service}-")]


def sort_lines(files: list[list[Line]]) -> list[Line]:
    """Lines of several files in the order of time. A line without a time stays behind the one before it."""
    keyed = []
    for position, lines in enumerate(files):
        last = ""
        for index, line in enumerate(lines):
            last = line.time or last
            keyed.append((last, position, index, line))
    return [line for *_, line in sorted(keyed, key=lambda key: key[:3])]


def pretty(line: Line) -> tuple[str, str]:
    """A line for people and its style: time of day, level, process, event, and the rest as key=value."""
    if line.entry is None:
        return f"{line.source}  {line.text}", "dim"
    entry = line.entry
    level = str(entry.get("level", "info"))
    day_time = line.time[11:23].rstrip("Z") or " " * 12
    rest = " ".join(f"{key}={_short(value)}" for key, value in entry.items() if key not in (*_HEAD, "exception"))
    text = f"{day_time:<12}  {level:<8} {line.source:<12} {entry.get('event', '')}  {rest}".rstrip()
    if entry.get("exception"):
        text += f"\n{entry['exception']}"
    return text, _STYLES.get(level, "")


def _write(lines: list[Line], screen: Screen) -> None:
    for line in lines:
        if screen.as_json:
            # Raw, as written; what is not JSON is wrapped, so that every line can be parsed.
            screen.raw(line.text if line.entry is not None else json.dumps({"process": line.source, "text": line.text}))
        else:
            screen.styled(*pretty(line))


def _short(value: Any) -> str:
    return value if isinstance(value, str) and value and " " not in value else json.dumps(value, ensure_ascii=False)
