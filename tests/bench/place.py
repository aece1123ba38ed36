"""Where it is measured: the suite as `make up` starts it, on free ports over a temporary folder, and its processes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from deploy.local.ports import Ports
from deploy.local.suite import ROOT, Suite
from penstock import Client
from tests.bench.cpu import resident_megabytes
from tests.bench.exchange import Exchange, agreed
from tests.bench.output import WrongAnswers

TRACE_RATIO: Final = 0.01
DESCRIPTORS: Final = 8192


class Place:
    """The running suite."""

    def __init__(self, suite: Suite, client: Client) -> None:
        self._suite = suite
        self._client = client
        self._pids = suite.running()

    @property
    def grpc(self) -> str:
        """host:port of the gateway's gRPC."""
        return f"127.0.0.1:{self._suite.ports['gateway_grpc']}"

    def infer_url(self, model: str) -> str:
        """Where REST takes requests to the model."""
        return f"http://127.0.0.1:{self._suite.ports['gateway_rest']}/v2/models/{model}/infer"

    def worker_address(self, worker: str) -> str:
        """host:port of a worker's own gRPC."""
        return f"127.0.0.1:{self._suite.ports[worker.replace('-', '_') + '_grpc']}"

    def heads(self, *workers: str, gateway: bool = True) -> dict[int, str]:
        """Pids to measure, each with its group: the gateway's and those workers'."""
        front = {self._pids["gateway"]: "gateway"} if gateway else {}
        return front | {self._pids[worker]: "worker" for worker in workers}

    def deploy(self, folder: Path, replicas: int = 1) -> None:
        """Publishes a model folder and waits until it serves."""
        version = self._client.publish(folder)
        self._client.deploy(version.name, version.version, replicas=replicas, wait=60)

    def worker_of(self, asked: Exchange) -> str:
        """Who serves the model, once the gateway knows it."""
        found = ""

        def known() -> bool:
            nonlocal found
            with suppress(WrongAnswers):
                found = agreed(self.grpc, asked).worker
            return bool(found)

        wait_until(known, 30.0, lambda: WrongAnswers(f"{asked.model}: the answer does not say which worker gave it"))
        return found

    def replicas(self, model: str, count: int) -> None:
        """Changes how many replicas a model has and waits for them."""
        self._client.deploy(model, 1, replicas=count, wait=60)

    def undeploy(self, model: str) -> None:
        """Takes a model away, so that it disturbs nobody."""
        self._client.undeploy(model)

    def batches(self, model: str) -> dict[int, int]:
        """How many batches of each size the model has run, over all its replicas."""
        url = f"http://127.0.0.1:{self._suite.ports['gateway_rest']}/v2/models/{model}/stats"
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            said: dict[str, Any] = json.load(answer)
        counts: dict[int, int] = {}
        for each in said["model_stats"]:
            for batch in each["batch_stats"]:
                size = int(batch["batch_size"])
                counts[size] = counts.get(size, 0) + int(batch["compute_infer"]["count"])
        return counts

    def memory(self) -> dict[str, float]:
        """Resident megabytes of a gateway and a worker."""
        return {
            "gateway_mb": resident_megabytes(self._pids["gateway"]),
            "worker_mb": resident_megabytes(self._pids["worker-1"]),
        }


@contextmanager
def running(
    state: Path, say: Callable[[str], None], *, trace_ratio: float | None = TRACE_RATIO, gateways: int = 1
) -> Iterator[Place]:
    """The suite, up; drained and stopped at the end. trace_ratio: None for no traces and no access log; gateways:
    processes on the gateway's port."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # For the cell with a thousand idle connections; children inherit it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
    flags = {"gateway": ("--access-log=0",)} if trace_ratio is None else {}
    suite = Suite(state, Ports.free(), trace_ratio=trace_ratio, gateway_processes=gateways, flags=flags)
    suite.up()
    try:
        say("the suite is up")
        with Client(f"127.0.0.1:{suite.ports['gateway_grpc']}", timeout=60) as client:
            yield Place(suite, client)
    finally:
        if killed := suite.down():
            say(f"had to be killed: {', '.join(killed)}")


def wait_until(holds: Callable[[], bool], seconds: float, problem: Callable[[], Exception]) -> None:
    """Asks until it holds; raises the problem when it does not in time."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise problem()
        time.sleep(0.05)


@contextmanager
def yardstick(*mode: str) -> Iterator[tuple[str, int]]:
    """A bare grpc.aio server: its address and pid."""
    command = [sys.executable, "-m", "tests.bench.yardstick", *mode]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
