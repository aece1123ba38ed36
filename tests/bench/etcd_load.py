"""What Penstock asks of etcd: messages of one process a second at rest, and what one change costs, as etcd counts them.

    python -m tests.bench.etcd_load [--seconds 20]

At rest: two processes of one kind alone with a fresh etcd; what both send, halved. Changes: the suite as `make up`
starts it (two schedulers, two workers, a registry, a gateway); nothing is written there at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Final

from deploy.local.ports import Ports
from deploy.local.suite import Suite
from penstock import Client
from tests.bench.models import image
from tests.harness.etcd import EtcdProcess
from tests.harness.processes import started

_RECEIVED: Final = re.compile(
    r'^grpc_server_msg_received_total\{grpc_method="(\w+)",grpc_service="etcdserverpb.* (\S+)$', re.MULTILINE
)
METHODS: Final = {
    "LeaseKeepAlive": "lease renewals",
    "Watch": "signs of life of watches",
    "Txn": "own records read back",
    "Range": "reads",
    "Status": "alarms asked for",
}
KINDS: Final = {
    "worker": ("--cache-dir={folder}",),
    "gateway": ("--http-port=0",),
    "scheduler": (),
    "registry": ("--data-dir={folder}",),
}
COPIES: Final = 2
SETTLE_SECONDS: Final = 3.0
"""More than a change takes to end, and than a process needs to come to rest."""


def messages(metrics: str) -> dict[str, float]:
    """Messages that etcd has received so far, by method."""
    return {method: float(count) for method, count in _RECEIVED.findall(metrics)}


def figure(metrics: str, name: str) -> float:
    """One figure of etcd's own; 0 where it has none yet."""
    found = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def at_rest(kind: str, folder: Path, seconds: float) -> dict[str, float]:
    """Messages a second of one process, by method."""
    etcd = EtcdProcess(folder / "etcd")
    await asyncio.to_thread(etcd.start)
    try:
        async with AsyncExitStack() as stack:
            for copy in range(COPIES):
                own = [flag.format(folder=folder / f"{kind}-{copy}") for flag in KINDS[kind]]
                flags = ("--port=0", "--admin-port=0", f"--etcd={etcd.endpoint}", *own)
                process = await stack.enter_async_context(started(f"services.{kind}", *flags))
                await process.event("started", within=60)
            await asyncio.sleep(SETTLE_SECONDS)
            before, began = messages(etcd.metrics()), time.monotonic()
            await asyncio.sleep(seconds)
            after, took = messages(etcd.metrics()), time.monotonic() - began
    finally:
        await asyncio.to_thread(etcd.kill)
    return {method: (count - before.get(method, 0)) / took / COPIES for method, count in after.items()}


def print_rest(rates: dict[str, dict[str, float]]) -> None:
    """The table of what each kind of process asks at rest."""
    print("| messages a second of one process at rest |", " | ".join(rates), "|")
    print("| --- |", " | ".join("---" for _ in rates), "|")
    for method, meaning in METHODS.items():
        print(f"| {meaning} (`{method}`) |", " | ".join(f"{rate.get(method, 0):.2f}" for rate in rates.values()), "|")
    print("| all |", " | ".join(f"{sum(rate.values()):.2f}" for rate in rates.values()), "|")


class Changes:
    """Rows of the table of what a change costs."""

    def __init__(self, suite: Suite) -> None:
        self._url = f"http://127.0.0.1:{suite.ports['etcd_client']}/metrics"

    @contextmanager
    def row(self, what: str) -> Iterator[None]:
        """Around one change: prints what it cost."""
        before = self._figures()
        yield
        time.sleep(SETTLE_SECONDS)
        print(
            f"| {what} |",
            " | ".join(f"{now - then:.0f}" for now, then in zip(self._figures(), before, strict=True)),
            "|",
        )

    def _figures(self) -> tuple[float, float, float]:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            text = answer.read().decode()
        keys = figure(text, "etcd_mvcc_put_total") + figure(text, "etcd_mvcc_delete_total")
        return (
            figure(text, "etcd_debugging_mvcc_current_revision"),
            keys,
            figure(text, "etcd_debugging_mvcc_events_total"),
        )


def print_changes(folder: Path, say: Callable[[str], None]) -> None:
    """The table of what changes cost."""
    suite = Suite(folder / "suite", Ports.free())
    suite.up()
    try:
        say("the suite is up")
        time.sleep(SETTLE_SECONDS)
        changes = Changes(suite)
        print("| change, with 2 workers and 1 gateway | write transactions | keys written | events told |")
        print("| --- | --- | --- | --- |")
        with Client(f"127.0.0.1:{suite.ports['gateway_grpc']}", timeout=60) as client:
            version = client.publish(image(folder / "model"))
            with changes.row("nothing for a while"):
                pass
            with changes.row("a model deployed, 2 replicas"):
                client.deploy(version.name, version.version, replicas=2, wait=60)
            with changes.row("the same model undeployed"):
                client.undeploy(version.name)
            with changes.row("a worker killed, its lease over"):
                suite.kill("worker-2")
                time.sleep(2 * SETTLE_SECONDS)
            with changes.row("a worker started"):
                suite.start("worker-2")
                suite.wait_ready("worker-2")
    finally:
        suite.down()


def main() -> int:
    """Prints both tables; about two minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to count at rest (default: 20)")
    seconds = parser.parse_args().seconds

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="penstock-etcd-load-") as name:
        rates = {}
        for kind in KINDS:
            say(f"{kind} at rest")
            rates[kind] = asyncio.run(at_rest(kind, Path(name) / kind, seconds))
        print_rest(rates)
        print()
        print_changes(Path(name), say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
