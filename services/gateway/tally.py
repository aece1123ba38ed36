"""What each process of a gateway has let in of every caller, told to the others through memory that they share.

The memory is files in the folder that the processes share anyway: a row per caller, in which each process has a place
where it alone writes: its moment (admission.py) and its requests under way. Such a number is eight bytes that lie
together, written and read as a whole, so nobody waits for anybody. A place is held by a lock that ends with its
process, however that ends; the others look for places that nobody holds, and empty them. A caller's row is looked for
once, when his account is opened: a symbolic link names it (as in region_table.py).
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import mmap
import os
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final

from penstock.kit.log import get_logger

ROWS: Final = 64
"""Callers in one file."""
SPARE: Final = 4
"""Places beyond two for each process, an old one and the one that takes over from it."""
SWEEP: Final = 1.0
"""Seconds between two looks for places that nobody holds."""


_log = get_logger()


class Elsewhere:
    """One caller's row as one process sees it (admission.Others)."""

    __slots__ = ("_full_at", "_memory", "_mine", "_read", "_under_way", "_written")

    def __init__(self, memory: mmap.mmap, row: int, places: int, mine: int) -> None:
        """Of a row first the moments, then the requests under way."""
        self._memory, self._written = memory, memoryview(memory).cast("d")
        # Native doubles, which are read as a whole.
        self._read, self._mine = Struct(f"{places}d").unpack_from, mine
        self._full_at = row * 2 * places
        self._under_way = self._full_at + places

    def full_at(self) -> float:
        moments = list(self._read(self._memory, 8 * self._full_at))
        moments[self._mine] = 0.0
        return float(max(moments))

    def under_way(self) -> float:
        counts = self._read(self._memory, 8 * self._under_way)
        return float(sum(counts) - counts[self._mine])

    def tell_full_at(self, moment: float) -> None:
        self._written[self._full_at + self._mine] = moment

    def tell_under_way(self, count: int) -> None:
        self._written[self._under_way + self._mine] = count


class Tally:
    """The place of one process, from its making to `close`.

    runtime_dir: a folder of ours that the processes share, whose owner removes it; processes: how many serve. Raises
    OSError where there can be none.
    """

    def __init__(self, runtime_dir: Path, processes: int) -> None:
        self._folder = runtime_dir / "admitted"
        with suppress(FileExistsError):
            os.makedirs(self._folder, 0o700)
        self._places = 2 * processes + SPARE
        self._files: list[mmap.mmap] = []
        self._lock, self._mine = self._claimed()

    def of(self, caller: str) -> Elsewhere | None:
        """The row of a caller, which is made when there is none yet; None where the disk has no room for it."""
        try:
            number, row = divmod(self._row(caller), ROWS)
            while len(self._files) <= number:
                self._files.append(self._mapped(len(self._files)))
        except OSError as problem:
            _log.error("counted_alone", caller=caller, problem=str(problem))
            return None
        return Elsewhere(self._files[number], row, self._places, self._mine)

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            # What cannot be opened now can be the next time.
            with suppress(OSError):
                self.sweep()
            await asyncio.sleep(SWEEP)

    def sweep(self) -> None:
        """Empties the places whose processes are gone."""
        for number in range(self._places):
            if number == self._mine or not os.path.exists(self._place(number)):
                continue
            lock = self._locked(number)
            if lock is not None:
                if os.fstat(lock).st_size:
                    self._empty(number)
                    os.ftruncate(lock, 0)
                os.close(lock)

    def close(self) -> None:
        """Gives the place up. May be called again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _claimed(self) -> tuple[int, int]:
        for number in range(self._places):
            lock = self._locked(number)
            if lock is not None:
                self._empty(number)
                # What is not empty has been held.
                os.ftruncate(lock, 1)
                return lock, number
        raise OSError(f"all {self._places} places of {self._folder} are held")

    def _place(self, number: int) -> Path:
        return self._folder / f"place-{number}"

    def _locked(self, number: int) -> int | None:
        """The lock of a place; None where somebody has it."""
        lock = os.open(self._place(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _empty(self, place: int) -> None:
        """Whoever holds its lock empties a place, in all rows that there are."""
        number = 0
        while (self._folder / f"rows-{number}").exists():
            if len(self._files) <= number:
                self._files.append(self._mapped(number))
            written = memoryview(self._files[number]).cast("d")
            for begin in range(0, len(written), self._places):
                written[begin + place] = 0.0
            number += 1

    def _mapped(self, number: int) -> mmap.mmap:
        """Doubles; new ones are 0."""
        size = ROWS * 2 * self._places * 8
        file = os.open(self._folder / f"rows-{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # All of it now: writing to a page that the disk has no room for would end the process.
            os.posix_fallocate(file, 0, size)
            return mmap.mmap(file, size)
        finally:
            os.close(file)

    def _row(self, caller: str) -> int:
        link = self._folder / f"caller-{hashlib.sha256(caller.encode()).hexdigest()[:32]}"
        with suppress(FileNotFoundError):
            return int(os.readlink(link))
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # One at a time, for the count's sake.
            fcntl.flock(folder, fcntl.LOCK_EX)
            with suppress(FileExistsError):
                os.symlink(str(sum(entry.startswith("caller-") for entry in os.listdir(self._folder))), link)
            return int(os.readlink(link))
        finally:
            os.close(folder)
