"""A prefix of etcd as a dict of records, kept fresh: read everything, then follow the changes.

After every break everything is read again and only the differences applied; then the watch goes on from that read. It
costs one small read and needs no case by case: breaks, compaction, a store that was restored older or emptied, all end
in what the store holds now. The same happens now and then without a break. While etcd is away the last-known records
stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Generic, TypeVar

from google.protobuf.message import Message

from penstock import signals
from penstock.cluster import keys, records
from penstock.cluster.etcd import Etcd
from penstock.cluster.kv import Changes, Event, KeyValue, Op, Point, Put, Range
from penstock.errors import Internal, PenstockError
from penstock.kit.backoff import Backoff
from penstock.kit.log import get_logger
from penstock.kit.metrics import counter

M = TypeVar("M", bound=Message)

RESYNC = 300.0
"""Seconds after which everything is read again: etcd's watches have lost events before (etcd#17529, #18089)."""

log = get_logger()


def _nothing() -> None:
    pass


def _nobody(before: object, now: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Known:
    """What the store holds under a key, whether it can be read or not."""

    modified: int
    created: int
    value: bytes


class Mirror(Generic[M]):
    """The records under a prefix.

    Args:
        prefix: from `keys`, ending with a slash; or one key.
        message_class: what the values hold; a value that cannot be read is logged and the last good one kept. A key
            that is none of ours is logged and passed over.
        on_change: called after records or `connected` have changed, on the loop; must not block.
        resync: seconds between full reads.
        on_record: called for every record that has changed, before `on_change`: what it was and what it is, None for
            not there. Whoever follows it knows what `records` holds without looking through it.
    """

    def __init__(
        self,
        etcd: Etcd,
        prefix: str,
        message_class: type[M],
        on_change: Callable[[], None] = _nothing,
        *,
        resync: float = RESYNC,
        on_record: Callable[[M | None, M | None], None] = _nobody,
    ) -> None:
        self.prefix = prefix
        self.connected = False
        """Whether the records are as fresh as a standing watch makes them."""
        self.rewinds = 0
        """How often the store turned out older than it was; whoever remembers a term or revision should forget it."""
        self._etcd = etcd
        self._rewound = counter(signals.ETCD_REWINDS)
        self._class = message_class
        self._on_change = on_change
        self._on_record = on_record
        self._resync = resync
        self._records: dict[str, M] = {}
        self._known: dict[str, _Known] = {}
        self._point: Point | None = None
        self._told = 0
        # Revisions of our own writes that no watch or read has told yet.
        self._ahead: dict[str, int] = {}
        self._synced = asyncio.Event()
        self._backoff = Backoff()
        # One full read at a time, so that a later one is also one of a later revision.
        self._reading = asyncio.Lock()

    @property
    def records(self) -> Mapping[str, M]:
        """By key; a live view that changes between awaits. Treat the messages as immutable."""
        return MappingProxyType(self._records)

    @property
    def revision(self) -> int:
        """The store's revision that the records show."""
        return self._told

    async def synced(self) -> None:
        """Waits for the first complete read."""
        await self._synced.wait()

    def create_revision(self, key: str) -> int:
        """The revision at which the key was created; 0 when it is not there."""
        return self._known[key].created if key in self._known else 0

    async def refresh(self) -> None:
        """Reads everything now: afterwards the records show all that was written before the call.

        For whoever is about to decide on them. Raises Unavailable.
        """
        async with self._reading:
            everything = await self._etcd.range(self.prefix)
            # Otherwise the watch has told more than this read meanwhile, or the store was rewound, which run() handles.
            if everything.revision >= self._told:
                self._replace(everything)

    def wrote(self, operations: Sequence[Op], revision: int, messages: Mapping[str, M]) -> None:
        """Takes in what this process has written to the prefix at that revision, so that it need not wait to be told.

        For the only writer of these keys: what others wrote before, and the watch tells late, is passed over.
        messages: what the puts hold, by key.
        """
        changed = []
        for op in operations:
            known = self._known.get(op.key)
            if not op.key.startswith(self.prefix) or (known is not None and known.modified >= revision):
                continue
            if revision > self._told:
                self._ahead[op.key] = revision
            if isinstance(op, Put):
                new = _Known(revision, known.created if known is not None else revision, op.value)
                changed.append(self._set(op.key, new, messages[op.key]))
            else:
                changed.append(self._drop(op.key))
        if any(changed):
            self._on_change()

    async def run(self) -> None:
        """Keeps the records fresh until cancelled."""
        while True:
            try:
                async with self._reading:
                    self._replace(await self._etcd.range(self.prefix))
                await self._follow()
            except PenstockError as problem:
                self._disconnected(problem)
                await asyncio.sleep(self._backoff.next())

    async def _follow(self) -> None:
        """Applies changes from the last full read on; returns when it is time for another."""
        end = asyncio.get_running_loop().time() + self._resync
        async with aclosing(self._etcd.watch(self.prefix, self._told + 1)) as stream:
            async for changes in stream:
                self._backoff.reset()
                self._apply(changes)
                if asyncio.get_running_loop().time() >= end:
                    return

    def _replace(self, everything: Range) -> None:
        """Makes the records equal to a full read, touching only what differs."""
        rewound = self._is_rewound(everything)
        if rewound:
            self.rewinds += 1
            self._rewound.inc()
            log.warning("store_rewound", prefix=self.prefix, from_revision=self._told, to_revision=everything.revision)
            self._ahead.clear()
        there = {item.key for item in everything.items}
        ahead = {key for key, revision in self._ahead.items() if revision > everything.revision}
        dropped = [self._drop(key) for key in list(self._known) if key not in there and key not in ahead]
        written = [
            self._set(item.key, _Known(item.mod_revision, item.create_revision, item.value))
            for item in everything.items
            if item.key not in ahead
        ]
        self._point = everything.point
        self._tell(everything.revision)
        self._synced.set()
        if rewound or any(dropped) or any(written):
            self._on_change()

    def _is_rewound(self, everything: Range) -> bool:
        """Whether this read belongs to another history than what was told before.

        Revisions may have grown past ours since. But whatever was written at or before the last revision told was told.
        """
        if self._point is None:
            return False
        told = replace(self._point, revision=self._told)
        return not everything.point.follows(told) or any(
            item.mod_revision <= self._told
            and item.key not in self._ahead
            and self._known.get(item.key) != _known(item)
            for item in everything.items
        )

    def _apply(self, changes: Changes) -> None:
        # A full read of `refresh` may have been ahead of the watch.
        changed = [self._apply_event(event) for event in changes.events if event.revision > self._told]
        self._tell(max(self._told, changes.revision))
        if any(changed) or not self.connected:
            self.connected = True
            self._on_change()

    def _tell(self, revision: int) -> None:
        self._told = revision
        if self._ahead:
            self._ahead = {key: ahead for key, ahead in self._ahead.items() if ahead > revision}

    def _apply_event(self, event: Event) -> bool:
        if event.revision <= self._ahead.get(event.key, 0):
            return False
        if event.value is None:
            return self._drop(event.key)
        return self._set(event.key, _Known(event.revision, event.create_revision, event.value))

    def _set(self, key: str, new: _Known, record: M | None = None) -> bool:
        """record: what the value holds, where that is known already."""
        old = self._known.get(key)
        self._known[key] = new
        if old is not None and old.value == new.value and old.created == new.created:
            return False
        if not keys.known(key):
            log.error("key_unknown", key=key[: keys.MAX_KEY], bytes=len(key))
            return False
        try:
            record = record if record is not None else records.from_json(self._class, new.value)
        except Internal as problem:
            log.error("record_unreadable", key=key, detail=problem.detail)
            return False
        before = self._records.get(key)
        self._records[key] = record
        self._on_record(before, record)
        return True

    def _drop(self, key: str) -> bool:
        self._known.pop(key, None)
        before = self._records.pop(key, None)
        if before is not None:
            self._on_record(before, None)
        return before is not None

    def _disconnected(self, problem: PenstockError) -> None:
        if self.connected:
            self.connected = False
            log.warning("watch_broken", prefix=self.prefix, problem=problem.message, detail=problem.detail)
            self._on_change()


def _known(item: KeyValue) -> _Known:
    return _Known(item.mod_revision, item.create_revision, item.value)
