"""A control service as the gateway reaches it: its live instances from the store, one connection each.

`connected` hands out a channel that is connected now, so an instance that cannot be reached is passed over before
anything is sent. What happens after that is never repeated: the first instance may have done it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import grpc

from penstock.channel import dial
from penstock.errors import Unavailable
from penstock.internal.v1.records_pb2 import ServiceRecord
from penstock.wire.client import Peer

CONNECT_SECONDS = 2.0
"""How long to wait for a connection to one instance."""

OPTIONS = (
    # A registry that restarts is found again within half a second rather than gRPC's growing pauses.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)


class Instances(Protocol):
    """The part of Mirror[ServiceRecord] that is used."""

    @property
    def records(self) -> Mapping[str, ServiceRecord]: ...


class Backend:
    """All instances of one service. The last one that worked is asked again, so that an upload and what follows it
    meet the same process."""

    def __init__(
        self,
        name: str,
        instances: Instances,
        *,
        credentials: Callable[[], grpc.ChannelCredentials | None] = lambda: None,
        tls: Callable[[], ssl.SSLContext] | None = None,
        dial: Callable[..., grpc.aio.Channel] = dial,
    ) -> None:
        """name: `registry` or `scheduler`, as callers may read it; credentials: for TLS, others after a change;
        tls: the same for connections that are not grpcio's."""
        self.name = name
        self._instances = instances
        self._dial = dial
        self._credentials = credentials
        self._tls = tls
        self._dialled_with = credentials()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._methods: dict[tuple[str, str], Any] = {}
        self._preferred = ""

    def unreachable(self) -> Unavailable:
        """What to say when no instance can be connected to."""
        return Unavailable(f"the {self.name} cannot be reached; serving goes on", retry_after=2.0)

    def lost(self) -> Unavailable:
        """What to say when the connection broke after a call was sent."""
        return Unavailable(
            f"the connection to the {self.name} was lost; whether the call was done is not known; serving goes on"
        )

    async def method(self, kind: str, path: str) -> Any:
        """A callable for a method of a connected instance, bytes in and out.

        kind: unary_unary or unary_stream. Raises Unavailable when none is connected.
        """
        address, channel = await self._connected()
        known = self._methods.get((address, path))
        if known is None:
            # Without serializers grpcio passes bytes through.
            known = self._methods[address, path] = getattr(channel, kind)(path)
        return known

    @contextlib.asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        """A connection of its own to a connected instance, for sending.py. Raises Unavailable when there is none."""
        address, _ = await self._connected()
        peer = Peer(address, tls=self._tls)
        try:
            yield peer
        finally:
            await peer.close()

    async def close(self) -> None:
        """Closes every connection; calls in flight are cut off."""
        self._methods.clear()
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    async def _connected(self) -> tuple[str, grpc.aio.Channel]:
        if (credentials := self._credentials()) is not self._dialled_with:
            self._dialled_with = credentials
            await self._forget_all_but([])
        addresses = sorted({record.address for record in self._instances.records.values()})
        await self._forget_all_but(addresses)
        for address in sorted(addresses, key=lambda address: address != self._preferred):
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = self._dial(address, credentials=credentials, options=OPTIONS)
            if await _connects(channel):
                self._preferred = address
                return address, channel
        raise self.unreachable()

    async def _forget_all_but(self, addresses: list[str]) -> None:
        """Lets go of connections to all others, whose instances are gone or which were made with older credentials.
        What is in flight there may take its time: an instance that leaves the store still finishes what it has."""
        gone = {address: self._channels.pop(address) for address in list(self._channels) if address not in addresses}
        for key in [key for key in self._methods if key[0] in gone]:
            del self._methods[key]
        for channel in gone.values():
            if channel.get_state() is not grpc.ChannelConnectivity.READY:
                await channel.close()


async def _connects(channel: grpc.aio.Channel) -> bool:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            while True:
                state = channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY:
                    return True
                if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    return False
                await channel.wait_for_state_change(state)
    except (TimeoutError, grpc.aio.UsageError):  # too slow, or let go of meanwhile
        return False
