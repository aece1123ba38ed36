"""Memory that processes share: each sees what the others tell, whoever ends leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from services.gateway.tally import ROWS, SPARE, Elsewhere, Tally

HOLDER = """
import sys
from pathlib import Path
from services.gateway.tally import Tally
row = Tally(Path(sys.argv[1]), 2).of("team")
row.tell_full_at(7.5)
row.tell_under_way(3)
print("told", flush=True)
sys.stdin.read()
"""


def row_of(tally: Tally, caller: str = "team") -> Elsewhere:
    row = tally.of(caller)
    assert row is not None
    return row


def test_each_sees_the_others_and_not_itself(tmp_path: Path) -> None:
    one, two, three = (Tally(tmp_path, 3) for _ in range(3))
    rows = [row_of(tally) for tally in (one, two, three)]
    for number, row in enumerate(rows, 1):
        assert (row.full_at(), row.under_way()) == (7.0 * (number > 1), number * (number - 1) / 2)
        row.tell_full_at(8.0 - number)
        row.tell_under_way(number)
    assert [row.full_at() for row in rows] == [6.0, 7.0, 7.0]
    assert [row.under_way() for row in rows] == [5.0, 4.0, 3.0]
    assert (row_of(one).full_at(), row_of(one, "other").full_at(), row_of(one, "other").under_way()) == (6.0, 0.0, 0.0)


def test_many_callers(tmp_path: Path) -> None:
    """More than a file holds; in whatever order two processes meet them."""
    one, two = Tally(tmp_path, 2), Tally(tmp_path, 2)
    callers = [f"caller {number}/ä" for number in range(2 * ROWS + 3)]
    for number, caller in enumerate(callers):
        row_of(one, caller).tell_under_way(number + 1)
    for number, caller in reversed(list(enumerate(callers))):
        assert row_of(two, caller).under_way() == number + 1


def test_a_place_that_is_given_up_is_empty_for_the_next_and_after_a_sweep(tmp_path: Path) -> None:
    one, two = Tally(tmp_path, 2), Tally(tmp_path, 2)
    mine, seen = row_of(one), row_of(two)
    mine.tell_full_at(9.0)
    mine.tell_under_way(4)
    two.sweep()
    assert (seen.full_at(), seen.under_way()) == (9.0, 4.0), "it is held"
    one.close()
    one.close()
    two.sweep()
    assert (seen.full_at(), seen.under_way()) == (0.0, 0.0)
    mine.tell_under_way(5)  # left behind, as by a process that died
    three = Tally(tmp_path, 2)
    assert seen.under_way() == 0.0
    row_of(three).tell_under_way(1)
    two.sweep()
    assert seen.under_way() == 1.0


def test_places_run_out(tmp_path: Path) -> None:
    held = [Tally(tmp_path, 1) for _ in range(2 + SPARE)]
    with pytest.raises(OSError, match="are held"):
        Tally(tmp_path, 1)
    held[3].close()
    Tally(tmp_path, 1)


def test_without_room_on_the_disk_a_process_counts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    tally = Tally(tmp_path, 2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        assert tally.of("team") is None
    assert row_of(tally).under_way() == 0.0


def test_nobody_else_may_look(tmp_path: Path) -> None:
    Tally(tmp_path, 2).of("team")
    folder = tmp_path / "admitted"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in folder.iterdir() if not file.is_symlink())


def test_what_a_process_that_was_killed_had_under_way_is_forgotten(tmp_path: Path) -> None:
    tally = Tally(tmp_path, 2)
    row = row_of(tally)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"told\n"
        assert (row.full_at(), row.under_way()) == (7.5, 3.0)
        tally.sweep()
        assert row.under_way() == 3.0
        os.kill(process.pid, signal.SIGKILL)

    async def sweeping() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await tally.run()

    asyncio.run(sweeping())
    assert (row.full_at(), row.under_way()) == (0.0, 0.0)
