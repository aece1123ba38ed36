"""run.json: what runs over one state folder, for every command that asks or changes it.

Several may at the same time: `make up`, `make down`, and the scheduler's own command that starts and stops workers
(resize.py). So it is replaced as a whole and changed under a lock.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """What is known of it.

    processes: pid by name. began: `began_at` of each. ports: by name, as deploy/ports.env has them and for workers that
    came later. leaving: names of workers that were told to go and may still be there. stopping: nothing is to be
    started any more. settings: what the suite was made with.
    """

    processes: dict[str, int] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    leaving: list[str] = field(default_factory=list)
    stopping: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def began_at(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since its own start; None when it is gone, or dead and not yet
    waited for. With the pid it is one process for ever. Source: proc_pid_stat(5), fields 3 and 22."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])


class RunFile:
    """The file of one state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._path = state / "run.json"
        self._depth = 0

    def read(self) -> Run:
        """As it is; empty when there is none."""
        try:
            return Run(**json.loads(self._path.read_text()))
        except FileNotFoundError:
            return Run()

    @contextmanager
    def changing(self) -> Iterator[Run]:
        """Nobody else changes it meanwhile; what is left in the value is written."""
        with self.locked():
            run = self.read()
            yield run
            self._state.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(json.dumps(asdict(run), indent=2) + "\n")
            fresh.replace(self._path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes it; who holds it may change it."""
        if self._depth:
            yield
            return
        self._state.mkdir(parents=True, exist_ok=True)
        with (self._state / "run.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def remove(self) -> None:
        """Nothing runs any more."""
        self._path.unlink(missing_ok=True)
