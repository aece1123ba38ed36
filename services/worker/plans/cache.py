"""Plans on this worker's disk, each a signed container, found by everything that it depends on.

`<digest of the ONNX file>/<target>-<shapes>.plan`: what the names say is for finding only; a file is believed for its
signature and its header. What the builder measured (its timing cache) lies beside the plan and is used again for the
same ONNX file and target alone: it was written by a process that had read that file, and no other model's plan may
come to depend on it. Everything blocks; call it from a thread.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from penstock import names, plans
from penstock.errors import InvalidArgument
from penstock.kit.log import get_logger

from ..engines.trt.matching import Target
from .wanted import Wanted

_PART: Final = ".part"

log = get_logger()


class PlanCache:
    """The plans of one worker.

    Args:
        folder: belongs to this process alone.
        capacity_bytes: beyond it what was not used for longest is thrown out, but nothing of a model that is loading.
        trusted_keys: public keys of those whose plans may lie here.
    """

    def __init__(self, folder: Path, *, capacity_bytes: int, trusted_keys: tuple[bytes, ...]) -> None:
        self._folder = folder
        self._capacity = capacity_bytes
        self._trusted = trusted_keys
        self._in_use: Counter[str] = Counter()

    def open(self) -> None:
        """Makes the folder, and removes what a killed worker has left half written."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._folder.glob(f"*/*{_PART}"):
            path.unlink()

    @contextmanager
    def held(self, source: str) -> Iterator[None]:
        """Nothing of this ONNX file is thrown out while the context lasts."""
        name = _plain(source)
        self._in_use[name] += 1
        try:
            yield
        finally:
            self._in_use[name] -= 1
            if not self._in_use[name]:
                del self._in_use[name]

    def find(self, wanted: Wanted, target: Target | None = None) -> list[Path]:
        """Verified plans in these shapes, for one target or for all. What is not what it should be is removed."""
        start = "*" if target is None else _of(target)
        found = []
        for path in sorted((self._folder / _plain(wanted.source)).glob(f"{start}-{_shapes(wanted)}.plan")):
            if self._good(path, wanted, target):
                found.append(path)
        return found

    def keep(self, wanted: Wanted, target: Target, write: Callable[[BinaryIO], None], whole: bool = False) -> Path:
        """The plan that `write` writes, verified, under its name; it takes the place of an older one.

        whole: refuse one that takes the largest batch in pieces only. Raises InvalidArgument where what was written is
        no plan for this, and OSError.
        """
        path = self._path(wanted.source, f"{_of(target)}-{_shapes(wanted)}.plan")
        part = path.with_name(path.name + _PART)
        try:
            with part.open("w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                header = plans.verified(file, self._trusted)
            if header.source != wanted.source or not target.met_by(header):
                raise InvalidArgument("the plan was made from another model or for another target")
            if whole and not wanted.met_by(header):
                raise InvalidArgument(f"the plan takes smaller batches than {wanted.largest}")
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        self._make_room()
        return path

    def timing(self, source: str, target: Target) -> Path:
        """Where the timing cache lies, if there is one."""
        return self._folder / _plain(source) / f"{_of(target)}.timing"

    def keep_timing(self, source: str, target: Target, data: bytes) -> None:
        """Keeps what the builder has measured."""
        path = self._path(source, f"{_of(target)}.timing")
        part = path.with_name(path.name + _PART)
        part.write_bytes(data)
        part.rename(path)

    def _good(self, path: Path, wanted: Wanted, target: Target | None) -> bool:
        try:
            with path.open("rb") as file:
                header = plans.verified(file, self._trusted)
            problem = "" if header.source == wanted.source else "made from another model"
            if target is not None and not target.met_by(header):
                problem = "made for another target"
            if not problem:
                # The access time is the time of last use.
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                return True
        except InvalidArgument as error:
            problem = error.message
        except OSError as error:
            problem = repr(error)
        log.error("cached_plan_refused", plan=path.name, problem=problem)
        path.unlink(missing_ok=True)
        return False

    def _path(self, source: str, name: str) -> Path:
        folder = self._folder / _plain(source)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / name

    def _make_room(self) -> None:
        """Throws out what is too much, longest unused first."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self._capacity:
                return
            if path.parent.name not in self._in_use:
                path.unlink(missing_ok=True)
                total -= size
                log.info("plan_evicted", plan=path.name, size_bytes=size)
                with suppress(OSError):  # others of this model are still there
                    path.parent.rmdir()

    def _files(self) -> list[tuple[int, int, Path]]:
        """(last use, size, path) of everything in the cache."""
        found = []
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_atime_ns, status.st_size, path))
        return found


def _plain(source: str) -> str:
    return names.digest(source).removeprefix("sha256:")


def _of(target: Target) -> str:
    return hashlib.sha256(str(target).encode()).hexdigest()[:32]


def _shapes(wanted: Wanted) -> str:
    return wanted.shapes[:32]
