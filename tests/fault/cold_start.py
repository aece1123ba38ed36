"""Row 17: a thousand requests at once for a model that is loaded on demand, and is not; workers that all start at once,
with nothing on their disks."""

from __future__ import annotations

import asyncio
import json
import secrets
import urllib.request
from collections import Counter
from collections.abc import Sequence
from typing import Final

import onnx

from penstock.errors import PenstockError
from penstock.v1 import models_pb2 as pb
from penstock.wire.client import Peer
from tests.fault.ledger import OK
from tests.fault.load import outcome, request
from tests.fault.stand import WORKERS, Stand
from tests.harness import models

HERD: Final = "herd"
COUNT: Final = 1000
DEADLINE: Final = 60.0
WEIGHT: Final = 2 << 20
"""Bytes of the model's file, so that one that is read twice is seen in the sum."""


def prepare(stand: Stand) -> int:
    """Publishes the model and deploys it to be loaded on demand; the size of its file."""
    version, size = _published(stand)
    stand.client.deploy(HERD, version, scaling=pb.Scaling(max_replicas=1))
    return size


def prepare_everywhere(stand: Stand) -> int:
    """Publishes the model and has every worker serve it; the size of its file."""
    version, size = _published(stand)
    stand.client.deploy(HERD, version, replicas=len(WORKERS), wait=120)
    return size


def _published(stand: Stand) -> tuple[int, int]:
    """Version and size of a model that no worker has seen."""
    folder = models.add_one(stand.suite.state / "models" / HERD, HERD)
    file = folder / "model.onnx"
    model = onnx.load(file)
    model.graph.doc_string = secrets.token_hex(WEIGHT // 2)
    onnx.save(model, file)
    return stand.client.publish(folder).version, file.stat().st_size


def herd(addresses: Sequence[str]) -> Counter[str]:
    """The outcomes of all requests, sent at once to these gateways in turn."""
    return asyncio.run(_herd(addresses))


def downloaded(stand: Stand) -> list[float]:
    """Bytes of artifacts that each worker has pulled since it was started."""
    found = []
    for worker in WORKERS:
        port = stand.suite.ports[f"{worker.replace('-', '_')}_admin"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        name = "penstock_worker_downloaded_bytes_total "
        found.append(next((float(line.split()[1]) for line in lines if line.startswith(name)), 0.0))
    return found


def loads(stand: Stand) -> int:
    """How often any worker has made the model ready."""
    count = 0
    for worker in WORKERS:
        for line in (stand.suite.state / "logs" / f"{worker}.log").read_text(errors="replace").splitlines():
            if '"replica_state"' in line:
                told = json.loads(line)
                count += (told.get("model"), told.get("state")) == (HERD, "ready")
    return count


async def _herd(addresses: Sequence[str]) -> Counter[str]:
    peers = [Peer(address) for address in addresses]
    deadline = asyncio.get_running_loop().time() + DEADLINE

    async def one(number: int) -> str:
        peer = peers[number % len(peers)]
        try:
            answer = await peer.unary("ModelInfer", request(HERD, number), deadline=deadline, headers={})
        except PenstockError as problem:
            return outcome(number, None, problem)
        return outcome(number, answer, None)

    try:
        return Counter(await asyncio.gather(*(one(number) for number in range(COUNT))))
    finally:
        for peer in peers:
            await peer.close()


def all_right(outcomes: Counter[str]) -> bool:
    """Whether each had its own answer."""
    return outcomes == Counter({OK: COUNT})
