"""The public port of one process among several: its part of what the service may use in total."""

from __future__ import annotations

import asyncio

import pytest

from penstock.errors import PenstockError
from penstock.kit import front
from penstock.kit.identity import Authenticator
from penstock.kit.ports import bound
from penstock.kit.runtime import RuntimeFolder
from penstock.kit.tls import Certificates, Files
from penstock.wire.client import ConnectionLost, Peer
from penstock.wire.server import Limits, inference_methods
from tests.harness.http2 import echo
from tests.harness.http2_services import soon


@pytest.mark.parametrize(("share", "allowed"), [(1, 6), (2, 3), (3, 2)])
async def test_connections_are_divided_among_the_processes(
    share: int, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front, "MAX_CONNECTIONS", 6)
    async with Running(share) as address:
        peers = [Peer(address) for _ in range(allowed + 1)]
        for peer in peers[:-1]:
            await say(peer, b"x")
        with pytest.raises(ConnectionLost):
            await say(peers[-1], b"x")
        for peer in peers:
            await peer.close()


async def test_request_bytes_are_divided_among_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "MAX_HELD", 1 << 20)
    for share, fits in ((1, True), (4, False)):
        async with Running(share) as address:
            peer = Peer(address)
            try:
                assert (len(await say(peer, bytes(1 << 19))) == 1 << 19) is fits
            except PenstockError as refusal:
                assert not fits, refusal
            await peer.close()


async def say(peer: Peer, payload: bytes) -> bytes:
    return bytes((await peer.unary("ModelInfer", payload, deadline=soon(10), headers={})).payload)


class Running:
    """A front that echoes."""

    def __init__(self, share: int) -> None:
        self._folder = RuntimeFolder.make()
        inner, plain = self._folder.path / "control.sock", Certificates(Files())
        everybody = Authenticator("")
        self._front = front.Front(bound("127.0.0.1", 0), inner, everybody, Limits(), plain, share=share)
        self._front.add(inference_methods({"ModelInfer": echo}, stream_infer=echo, default_timeout=10))

    async def __aenter__(self) -> str:
        await self._front.start()
        return f"127.0.0.1:{self._front.port}"

    async def __aexit__(self, *_: object) -> None:
        await self._front.close()
        self._folder.close()
        await asyncio.sleep(0)
