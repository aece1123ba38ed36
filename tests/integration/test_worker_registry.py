"""Pulling from registries over gRPC: one that is gone, one that breaks off, one that has not got it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from penstock.errors import NotFound, Unavailable
from penstock.v1 import models_pb2 as pb
from penstock.v1 import models_pb2_grpc as rpc
from services.worker.registry import Registries
from tests.harness.etcd import free_port
from tests.integration.worker_harness import ArtifactShelf

CONTENT = bytes(range(256)) * 1024


@pytest.fixture(autouse=True)
def first_address_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are asked from the last to the first, in no random order."""
    monkeypatch.setattr(random, "shuffle", lambda addresses: None)


class Breaking(ArtifactShelf):
    """Ends every stream with a broken connection after its first message."""

    async def DownloadArtifact(
        self, request: pb.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[pb.DownloadArtifactResponse]:
        yield pb.DownloadArtifactResponse(data=CONTENT[request.offset : request.offset + 1000])
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")


async def served(shelf: ArtifactShelf) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server()
    rpc.add_ArtifactServiceServicer_to_server(shelf, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def known() -> None:
    """The addresses are known from the start."""


async def pulled(registries: Registries, digest: str, offset: int = 0) -> bytes:
    return b"".join([data async for data in registries.download(digest, offset)])


async def test_a_registry_that_is_gone_is_passed_over() -> None:
    shelf = ArtifactShelf()
    digest = shelf.put(CONTENT)
    server, address = await served(shelf)
    registries = Registries(known, lambda: [address, f"127.0.0.1:{free_port()}"])
    assert await pulled(registries, digest) == CONTENT
    assert await pulled(registries, digest, 1000) == CONTENT[1000:]
    await registries.close()
    await server.stop(None)


async def test_when_no_registry_answers_it_says_so() -> None:
    registries = Registries(known, lambda: [f"127.0.0.1:{free_port()}"])
    with pytest.raises(Unavailable):
        await pulled(registries, "sha256:" + "0" * 64)
    await registries.close()
    with pytest.raises(Unavailable, match="no registry"):
        await pulled(Registries(known, list), "sha256:" + "0" * 64)


async def test_a_stream_that_breaks_off_is_not_mixed_with_another_ones() -> None:
    """Going on is the cache's business, which knows how far it is."""
    good, bad = ArtifactShelf(), Breaking()
    digest = good.put(CONTENT)
    servers = [await served(good), await served(bad)]
    registries = Registries(known, lambda: [address for _, address in servers])
    received = b""
    with pytest.raises(Unavailable):
        async for data in registries.download(digest, 0):
            received += data
    assert received == CONTENT[:1000]
    assert good.downloads == []
    await registries.close()
    for server, _ in servers:
        await server.stop(None)


async def test_an_artifact_that_nobody_has_is_not_found() -> None:
    server, address = await served(ArtifactShelf())
    registries = Registries(known, lambda: [address])
    with pytest.raises(NotFound):
        await pulled(registries, "sha256:" + "0" * 64)
    await registries.close()
    await server.stop(None)
