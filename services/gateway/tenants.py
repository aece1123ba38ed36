"""What callers may do, kept fresh: mirrors of tenants and of gateways in, what admission goes by out.

While etcd is away the mirrors keep what they last knew, and so does admission.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from penstock.internal.v1.records_pb2 import ServiceRecord, TenantRecord

from .absence import History, RegistryBelief
from .admission import Admission
from .routes import HOLDING_TICK, Mirrored


class Tenants:
    """Follows two mirrors. `note_change` is their on_change; `run` has admission told."""

    def __init__(self, admission: Admission, clock: Callable[[], float] | None = None) -> None:
        """clock: monotonic seconds; the loop's by default."""
        self._admission = admission
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._changed = asyncio.Event()
        self._belief = RegistryBelief[TenantRecord]()
        self._history = History()

    def note_change(self) -> None:
        """Something in the mirrors changed; changes that come together are taken together."""
        self._changed.set()

    async def run(self, tenants: Mirrored[TenantRecord], gateways: Mirrored[ServiceRecord]) -> None:
        """Follows the mirrors until cancelled."""
        await tenants.synced()
        await gateways.synced()
        while True:
            self._changed.clear()
            self.take(tenants, gateways)
            try:
                async with asyncio.timeout(HOLDING_TICK if self._belief.held else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def take(self, tenants: Mirrored[TenantRecord], gateways: Mirrored[ServiceRecord]) -> None:
        """Takes the mirrors as they are now."""
        now = self._clock()
        rewinds = self._history.rewinds(tenants.rewinds, tenants.revision)
        believed = self._belief.observe(tenants.records, rewinds, now)
        self._admission.say(believed.values(), max(1, len(gateways.records)), now)
