"""What the steps of a job said: a file of JSON lines per job, bounded, read again from any line on.

A job's log may be long and is worth little when it is old, so it is no matter for the database: it is cut at a limit,
with a line that says so, and the oldest logs go when there are too many.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from penstock.v1 import builds_pb2 as pb

MAX_LINES: Final = 5000
MAX_LINE: Final = 2000
KEPT_LOGS: Final = 1000
_CUT: Final = "the log is full; what follows is left out"


class Journal:
    """The logs of one registry. Methods block for as long as a small file takes.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._counts: dict[str, int] = {}

    def add(self, build_id: str, text: str, step_id: str = "") -> bool:
        """Writes a line; whether there was room for it."""
        count = self._counts.get(build_id)
        if count is None:
            count = len(self.read(build_id, 0, MAX_LINES + 1))
        if count > MAX_LINES:
            return False
        self._counts[build_id] = count + 1
        entry = {"t": time.time_ns() // 1000, "s": step_id, "x": text[:MAX_LINE] if count < MAX_LINES else _CUT}
        with (self._folder / build_id).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        return True

    def read(self, build_id: str, offset: int, most: int = 500) -> list[pb.BuildLogLine]:
        """Lines from `offset` on; none for a log that is gone."""
        found = []
        with suppress(FileNotFoundError), (self._folder / build_id).open(encoding="utf-8") as file:
            for number, text in enumerate(file):
                if number >= offset + most:
                    break
                if number >= offset and text.endswith("\n"):  # a registry that was killed may leave half a line
                    found.append(_line(number, text))
        return found

    def close(self, build_id: str) -> None:
        """No more lines come for this job; older logs go where there are too many."""
        self._counts.pop(build_id, None)
        logs = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in logs[:-KEPT_LOGS]:
            path.unlink(missing_ok=True)


def _line(number: int, text: str) -> pb.BuildLogLine:
    try:
        entry = json.loads(text)
        line = pb.BuildLogLine(offset=number, step_id=entry["s"], text=entry["x"])
        line.time.FromMicroseconds(entry["t"])
    except (ValueError, KeyError, TypeError):
        return pb.BuildLogLine(offset=number, text="(this line was not written to its end)")
    return line
