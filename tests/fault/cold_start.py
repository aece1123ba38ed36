"""Row 17: a thousand requests at once for a model that is loaded on demand, and is not; workers that all start at once,
with nothing on their disks."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import onnx

from deploy.local.suite import ROOT
from penstock.v1 import models_pb2 as pb
from tests.fault.ledger import OK
from tests.fault.stand import WORKERS, Stand
from tests.harness import models

HERD: Final = "herd"
COUNT: Final = 1000
ROUNDS: Final = 12
"""Herds at each of two suites in turns, each for a model of its own: enough for a p99 of what others meet meanwhile."""
DEADLINE: Final = 60.0
WEIGHT: Final = 2 << 20
"""Bytes of the model's file, so that one that is read twice is seen in the sum."""


@dataclass(frozen=True, slots=True)
class Herd:
    """What became of it. began, ended: by time.monotonic()."""

    outcomes: Counter[str]
    began: float
    ended: float

    @property
    def all_right(self) -> bool:
        """Whether each had its own answer."""
        return self.outcomes == Counter({OK: COUNT})


def prepare(stand: Stand, name: str) -> int:
    """Publishes a model and deploys it to be loaded on demand; the size of its file."""
    version, size = _published(stand, name)
    stand.client.deploy(name, version, scaling=pb.Scaling(max_replicas=1))
    return size


def prepare_everywhere(stand: Stand) -> int:
    """Publishes the model and has every worker serve it; the size of its file."""
    version, size = _published(stand, HERD)
    stand.client.deploy(HERD, version, replicas=len(WORKERS), wait=120)
    return size


def _published(stand: Stand, name: str) -> tuple[int, int]:
    """Version and size of a model that no worker has seen."""
    folder = models.add_one(stand.suite.state / "models" / name, name)
    file = folder / "model.onnx"
    model = onnx.load(file)
    model.graph.doc_string = secrets.token_hex(WEIGHT // 2)
    onnx.save(model, file)
    return stand.client.publish(folder).version, file.stat().st_size


@contextmanager
def gathered(addresses: Sequence[str], name: str) -> Iterator[subprocess.Popen[str]]:
    """A herd that stands at these gateways, ready for `sent`."""
    command = [sys.executable, "-m", "tests.fault.herd", ",".join(addresses), name, str(COUNT), str(DEADLINE)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n", "the herd did not gather"
            yield process
        finally:
            process.kill()


def sent(process: subprocess.Popen[str]) -> Herd:
    """Has it send everything at once, and waits for all answers."""
    told, _ = process.communicate("go\n", timeout=DEADLINE + 10)
    said = json.loads(told)
    return Herd(Counter(said["outcomes"]), said["began"], said["ended"])


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


def loads(stand: Stand, name: str) -> int:
    """How often any worker has made a model ready."""
    count = 0
    for worker in WORKERS:
        for line in (stand.suite.state / "logs" / f"{worker}.log").read_text(errors="replace").splitlines():
            if '"replica_state"' in line:
                told = json.loads(line)
                count += (told.get("model"), told.get("state")) == (name, "ready")
    return count
