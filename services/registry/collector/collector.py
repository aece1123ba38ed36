"""One collection: what the cache of builds cannot hold is forgotten, then every artifact that nothing names goes.

Why a name never loses its artifact, though nobody locks files and database together. Whoever is about to write a name
claims the artifact first, which sets its time; the collector fixes the time `before` which a claim counts no more, and
only then asks the database who names what. A name that was written earlier is seen. One that is written later was
claimed after `before`, since nobody takes longer than the grace from the claim to the name, so its artifact is new. And
between looking at a file's time and removing it nobody can claim it: both happen under its lock (blobs.py). For the
same reason several registries may collect at once; that they do not is thrift.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from penstock.v1.models_pb2 import Artifact
from penstock.v1.storage_pb2 import Collection

from ..blobs import Blob, BlobStore
from ..disk import locked
from . import cache
from .references import References

MOST_SHOWN: Final = 20


@dataclass(slots=True)
class Tally:
    """What became of every artifact."""

    freed: dict[str, int] = field(default_factory=dict)
    freed_count: int = 0
    freed_bytes: int = 0
    kept_count: int = 0
    kept_bytes: dict[str, int] = field(default_factory=dict)

    def keep(self, blob: Blob, why: cache.Why) -> None:
        """It stays."""
        self.kept_count += 1
        self.kept_bytes[why] = self.kept_bytes.get(why, 0) + blob.size

    def free(self, blob: Blob) -> None:
        """It went."""
        self.freed_count += 1
        self.freed_bytes += blob.size
        self.freed[blob.digest] = blob.size
        if len(self.freed) > 2 * MOST_SHOWN:
            self.freed = dict(self.largest())

    def largest(self) -> list[tuple[str, int]]:
        """The largest of those that went, with their sizes."""
        return sorted(self.freed.items(), key=lambda one: (-one[1], one[0]))[:MOST_SHOWN]


class Collector:
    """Collects; methods block: call them from a thread.

    Args:
        lock: file that whoever collects holds.
        grace: seconds that an artifact stays after it was claimed, though nothing names it.
        limits: of the cache of builds.
    """

    def __init__(
        self, references: References, blobs: BlobStore, *, lock: Path, grace: float, limits: cache.Limits
    ) -> None:
        self._references = references
        self._blobs = blobs
        self._lock = lock
        self._grace = grace
        self._limits = limits
        self._stopping = threading.Event()

    def stop(self) -> None:
        """What is under way ends soon, with what it has done so far on record."""
        self._stopping.set()

    def collect(self, who: str, *, dry_run: bool) -> Collection:
        """Frees what nobody needs, or says what that is, and records it. who: the caller, empty for the registry.

        Raises Unavailable while another registry collects.
        """
        made = Collection(who=who, dry_run=dry_run, time=self._references.now())
        self._lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with nullcontext() if dry_run else locked(self._lock, 0.0):
            begun = time.monotonic()
            tally = Tally()
            try:
                self._collect(made, tally)
            finally:
                _fill(made, tally, time.monotonic() - begun)
                if not dry_run:
                    self._references.record(made)
        return made

    def _collect(self, made: Collection, tally: Tally) -> None:
        before = self._blobs.now() - self._grace
        if not made.dry_run:
            self._references.forget_deleted()
        wanted = self._references.wanted()
        gone = self._evicted(wanted.entries, wanted.builds, dry_run=made.dry_run)
        made.evicted_results = sum(1 for entry in gone if entry.kind == cache.RESULTS)
        made.evicted_plans = len(gone) - made.evicted_results
        forgotten = {(entry.kind, entry.key) for entry in gone}
        stay = [entry for entry in wanted.entries if (entry.kind, entry.key) not in forgotten]
        cached = {digest for entry in stay for digest in entry.files}
        for shard in self._blobs.shards():
            if self._stopping.is_set():
                made.partial = True
                return
            self._sweep(shard, wanted.builds, cached, before, tally, dry_run=made.dry_run)

    def _evicted(self, entries: tuple[cache.Entry, ...], builds: Set[str], *, dry_run: bool) -> tuple[cache.Entry, ...]:
        named = builds | self._references.of_versions({digest for entry in entries for digest in entry.files})
        now = self._references.now().ToMicroseconds()
        gone = cache.evicted(entries, named, self._limits, now)
        return gone if dry_run else self._references.evict(gone)

    def _sweep(
        self, shard: list[Blob], builds: Set[str], cached: Set[str], before: float, tally: Tally, *, dry_run: bool
    ) -> None:
        """Removes what can go of one part of the store, which is asked for what names it only now."""
        versions = self._references.of_versions(blob.digest for blob in shard)
        doomed = []
        for blob in shard:
            why = cache.reason(blob.digest, blob.claimed, versions=versions, builds=builds, cache=cached, before=before)
            if why is None:
                doomed.append(blob)
            else:
                tally.keep(blob, why)
        removed = {blob.digest for blob in doomed}
        if not dry_run:
            removed = self._blobs.remove(removed, before)
        for blob in doomed:
            if blob.digest in removed:
                tally.free(blob)
            else:
                tally.keep(blob, "new")


def _fill(made: Collection, tally: Tally, seconds: float) -> None:
    made.seconds = seconds
    made.freed_artifacts, made.freed_bytes = tally.freed_count, tally.freed_bytes
    made.kept_artifacts = tally.kept_count
    made.kept_bytes.update(tally.kept_bytes)
    made.largest.extend(Artifact(digest=digest, size_bytes=size) for digest, size in tally.largest())
