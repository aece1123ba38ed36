"""What a command writes: tables and progress for people, JSON for scripts, errors on stderr.

Colours and bars come from `rich` when it is installed and somebody watches; without it, in a pipe or with NO_COLOR,
plain text says the same. Text from servers is never read as markup, and its control characters are shown, not obeyed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TextIO

Cell = str | tuple[str, str]
"""Text, or text with a style such as `green` or `bold red`."""

STATE_STYLES: Final = {"ready": "green", "failed": "bold red", "loading": "yellow", "pulling": "yellow", "cold": "blue"}

Bar = Callable[[str, int, int], None]
"""Told (what, done, total) as work goes on; done == total ends it."""


class Screen:
    """The terminal of one command. as_json: tables, notes and progress are left out; `data` is all that is written."""

    def __init__(self, *, as_json: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.as_json = as_json
        self._out = out or sys.stdout
        self._err = err or sys.stderr

    def data(self, value: Any, *, one_line: bool = False) -> None:
        """Writes JSON: the whole answer of a command, or one line of many."""
        text = json.dumps(finite(value), indent=None if one_line else 2, ensure_ascii=False, allow_nan=False)
        print(text, file=self._out, flush=one_line)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, empty: str = "nothing") -> None:
        """Writes a table; `empty` where there are no rows."""
        if not rows:
            self.line(empty)
        elif self._coloured(self._out):
            self._console(self._out).print(_rich_table(columns, rows))
        else:
            self._out.write(plain_table(columns, rows))

    def line(self, text: str = "") -> None:
        """Writes a line of the answer."""
        print(clean(text), file=self._out)

    def raw(self, text: str) -> None:
        """Writes a line as it is, for scripts."""
        print(text, file=self._out)

    def styled(self, text: str, style: str) -> None:
        """Writes a line in a style where there are colours."""
        if self._coloured(self._out):
            from rich.text import Text

            self._console(self._out).print(Text(clean(text), style=style), soft_wrap=True)
        else:
            self.line(text)

    def note(self, text: str) -> None:
        """Says on stderr what is going on; not part of the answer."""
        if not self.as_json:
            print(clean(text), file=self._err, flush=True)

    def error(self, message: str, *, hint: str = "", code: str = "", field: str = "") -> None:
        """Writes `penstock: message` and a hint to stderr; with --json an object."""
        if self.as_json:
            entry = {"code": code, "message": message, "field": field, "hint": hint}
            print(json.dumps({"error": {key: text for key, text in entry.items() if text}}), file=self._err)
            return
        print(f"penstock: {clean(message)}", file=self._err)
        for line in hint.splitlines():
            print(f"  {clean(line)}", file=self._err)

    def clear(self) -> None:
        """Empties a terminal before the next picture; a blank line elsewhere."""
        self._out.write("\x1b[H\x1b[2J" if self._coloured(self._out) else "\n")

    def flush(self) -> None:
        """Writes out what is buffered; raises BrokenPipeError when nobody reads any more."""
        self._out.flush()

    @contextlib.contextmanager
    def progress(self) -> Iterator[Bar]:
        """Bars on stderr while the body works; a line per finished step where nobody watches."""
        if self.as_json:
            yield lambda what, done, total: None
        elif self._coloured(self._err):
            with self._bars() as bar:
                yield bar
        else:
            yield self._plain_bar

    def _plain_bar(self, what: str, done: int, total: int) -> None:
        if done >= total:
            self.note(f"{what}: {size(total)}")

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Bar]:
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        with progress.Progress(*columns, console=self._console(self._err)) as bars:
            tasks: dict[str, progress.TaskID] = {}

            def bar(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(clean(what), total=total)
                # A task of nothing counts as unfinished for ever.
                bars.update(tasks[what], completed=max(done, 1) if not total else done, total=max(total, 1))

            yield bar

    def _coloured(self, stream: TextIO) -> bool:
        if self.as_json or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
            return False
        try:
            import rich  # noqa: F401
        except ImportError:
            return False
        return True

    def _console(self, stream: TextIO) -> Any:
        from rich.console import Console

        return Console(file=stream, highlight=False, markup=False, emoji=False)


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table in plain text: columns two spaces apart, as wide as their widest cell."""
    texts = [list(columns), *([clean(_text(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts)
    return "".join(f"{line}\n" for line in lines)


def clean(text: str) -> str:
    """The text with control characters made visible, so that no server can move the cursor or forge a line."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


def size(count: int) -> str:
    """A number of bytes for people, such as `4.2 MiB`."""
    if count < 1024:
        return f"{count} B"
    number, units = float(count), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = ""
    while number >= 1024 and (larger := next(units, "")):
        number, unit = number / 1024, larger
    return f"{number:.1f} {unit}"


def finite(value: Any) -> Any:
    """The value with NaN and infinities as text, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(_text(cell)), style=cell[1] if isinstance(cell, tuple) else "") for cell in row))
    return table


def _text(cell: Cell) -> str:
    return cell[0] if isinstance(cell, tuple) else cell
