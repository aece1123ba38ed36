"""Where artifacts and plans come from: any registry that has announced itself, one after the other until one
answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

import grpc

from penstock.channel import dial, raising
from penstock.errors import DeadlineExceeded, Unavailable
from penstock.v1 import builds_pb2, builds_pb2_grpc
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc

ANSWER_SECONDS: Final = 10.0
"""How long a registry may take to look a plan up."""
STALL_SECONDS: Final = 30.0
"""A registry that sends nothing for so long counts as gone."""


class Registries:
    """The registries of the cluster.

    known: waits until `addresses` says something, which a starting worker may not know yet;
    addresses: those that are there now, asked before each download; token: what this worker presents; credentials: for
    TLS, others after a change.
    """

    def __init__(
        self,
        known: Callable[[], Awaitable[None]],
        addresses: Callable[[], Sequence[str]],
        *,
        token: str = "",
        credentials: Callable[[], grpc.ChannelCredentials | None] = lambda: None,
    ) -> None:
        self._known = known
        self._addresses = addresses
        self._token = token
        self._credentials = credentials
        self._dialled_with = credentials()
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def download(self, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The artifact's bytes from an offset. Raises NotFound, or Unavailable when no registry answers or one breaks
        off; what was yielded before stays good."""
        addresses = await self._shuffled()
        for left in reversed(range(len(addresses))):
            sent = False
            try:
                async with aclosing(self._from(addresses[left], digest, offset)) as stream:
                    async for data in stream:
                        sent = True
                        yield data
                return
            except Unavailable:
                if sent or not left:
                    raise

    async def find_engine(self, wanted: builds_pb2.FindEngineRequest) -> builds_pb2.Engine | None:
        """The plan of a request, None where none is known. Raises Unavailable when no registry answers."""
        addresses = await self._shuffled()
        for left in reversed(range(len(addresses))):
            try:
                with raising():
                    stub = builds_pb2_grpc.BuildServiceStub(self._channel(addresses[left]))
                    answer = await stub.FindEngine(wanted, timeout=ANSWER_SECONDS)
                return answer.engine if answer.HasField("engine") else None
            except (Unavailable, DeadlineExceeded) as error:
                if not left:
                    raise Unavailable(error.message, detail=error.detail) from None
        return None

    async def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def _shuffled(self) -> list[str]:
        """Addresses in any order; raises Unavailable where there is none."""
        await self._known()
        addresses = list(self._addresses())
        random.shuffle(addresses)
        if not addresses:
            raise Unavailable("no registry is there to pull from")
        return addresses

    async def _from(self, address: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        call = rpc.ArtifactServiceStub(self._channel(address)).DownloadArtifact(
            pb.DownloadArtifactRequest(digest=digest, offset=offset)
        )
        try:
            with raising():
                while True:
                    async with asyncio.timeout(STALL_SECONDS):
                        message = await call.read()
                    if not isinstance(message, pb.DownloadArtifactResponse):
                        return  # the end of the stream
                    yield message.data
        except TimeoutError:
            raise Unavailable("the registry stopped sending") from None
        finally:
            call.cancel()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if (credentials := self._credentials()) is not self._dialled_with:
            # What is under way ends on the old channels, which close when nobody has them any more.
            self._dialled_with = credentials
            self._channels.clear()
        if address not in self._channels:
            self._channels[address] = dial(address, token=self._token, credentials=credentials)
        return self._channels[address]
