"""While every engine is busy, rows of those who would go next are copied to where the engine that should be free first
will find them. Nobody is bound by it: whoever leaves, or is overtaken, has been copied for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from penstock.kit.log import get_logger

from .batching import BatchQueue
from .codec import Request
from .instance import Instance
from .seat import Seat

log = get_logger()


class Lookahead:
    """Over the instances of one batcher, however many there are just now, and its queue."""

    def __init__(self, instances: Sequence[Instance], queue: BatchQueue[Seat]) -> None:
        self._instances = instances
        self._queue = queue
        self._looking = False

    def look(self) -> None:
        """What waits has changed: it is looked at once this turn of the loop is over and answers are on their way."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._copy)

    def forget(self, request: Request) -> None:
        """A request will not run."""
        if any([instance.staging.forget(request) for instance in self._instances]):
            self.look()

    def taken(self, by: Instance) -> None:
        """An engine has taken a batch: what was copied of it for another one is of no use."""
        for instance in self._instances:
            if instance is not by:
                instance.staging.drop()

    def _copy(self) -> None:
        self._looking = False
        if all([instance.free_at for instance in self._instances]) and self._instances:
            first = min(self._instances, key=lambda each: each.free_at)
            try:
                first.staging.ahead(waiting.item.request for waiting in self._queue.upcoming())
            except OSError as problem:  # no memory for an arena: the batch itself will say so
                log.warning("not_copied_ahead", problem=repr(problem))
