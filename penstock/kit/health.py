"""The health service of gRPC (grpc.health.v1), which load balancers and Kubernetes ask: one status for the process.

Not grpc_health's own servicer: there a watcher that leaves silences the others, and one that stays holds up the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2

from penstock.errors import NotFound

_STATUS = health_pb2.HealthCheckResponse


class Health:
    """NOT_SERVING until told otherwise. Watchers hear every change, the last one too, and are then let go."""

    def __init__(self) -> None:
        self._serving = False
        self._over = False
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        """Says whether the process serves."""
        if serving != self._serving:
            self._serving = serving
            self._tell()

    def end(self) -> None:
        """Not serving, and no change will follow."""
        self._serving, self._over = False, True
        self._tell()

    async def Check(self, request: Any, context: Any) -> Any:
        """The status now; the empty name, the whole server, is the only one known."""
        if request.service:
            raise NotFound("health is kept for the whole server: leave `service` empty", field="service")
        return self._response()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The status now and after each change. An unknown name is answered as the protocol asks, without an end."""
        while True:
            changed = self._changed
            yield _STATUS(status=_STATUS.SERVICE_UNKNOWN) if request.service else self._response()
            if self._over:
                return
            await changed.wait()

    def _response(self) -> Any:
        return _STATUS(status=_STATUS.SERVING if self._serving else _STATUS.NOT_SERVING)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
