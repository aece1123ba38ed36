"""The stand on which scenarios run: a whole suite with more workers and gateways, a load, and what tells of both."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deploy.local.ports import Ports
from deploy.local.suite import ROOT, Process, Suite
from penstock import Client, errors
from penstock.v1 import cluster_pb2 as pb
from tests.e2e.conftest import serve
from tests.fault import store
from tests.fault.ledger import Ledger
from tests.fault.proxy import Proxy
from tests.harness import models
from tests.harness.processes import children_of

MODEL = "add1"
WORKERS = ("worker-1", "worker-2", "worker-3")
GATEWAYS = ("gateway", "gateway-2")
SCHEDULERS = ("scheduler-1", "scheduler-2")
PROXIED = "worker-3"
"""The worker that reaches etcd, and is reached by gateways, through proxies."""
FAR_HOST = "127.0.0.33"
"""Where gateways find that worker."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Dress:
    """How a stand differs from the usual one.

    before, flags: words before and after the command of a process, by its name. manifest: what the model says more,
    by section.
    etcd_for, worker_at: hosts at which PROXIED finds its proxy to etcd, and at which its port is found.
    modules: what runs in place of a module of Python, by its name.
    store: host:port of the store that is asked, where the processes were told of another than the suite's own.
    """

    before: Mapping[str, Sequence[str]] = field(default_factory=dict)
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    manifest: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    etcd_for: str = "127.0.0.1"
    worker_at: str = "127.0.0.1"
    modules: Mapping[str, str] = field(default_factory=dict)
    store: str = ""


USUAL = Dress()


class Dressed(Suite):
    """A suite whose processes are started in other circumstances."""

    dress = USUAL

    def table(self) -> list[Process]:
        """See Suite.table."""
        dress = self.dress
        rows = [
            replace(row, command=[*dress.before.get(name, ()), *command, *dress.flags.get(name, ())])
            for row in super().table()
            for name, command in ((row.name, [dress.modules.get(word, word) for word in row.command]),)
        ]
        far = {PROXIED: self.dress.worker_at}
        return [
            replace(row, ready_url=row.ready_url.replace("127.0.0.1", far.get(row.name, "127.0.0.1"))) for row in rows
        ]


class Load:
    """A running tests.fault.load and its ledger, which fills as lines come. rate: requests a second."""

    def __init__(self, command: list[str], rate: float) -> None:
        self.ledger = Ledger()
        self.rate = rate
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, more: int, seconds: float = 90.0) -> None:
        """Waits for so many more right answers."""
        goal = self.ledger.right + more
        wait_until(lambda: self.ledger.right >= goal, seconds)

    def stop(self) -> None:
        """No more is sent; returns when all that was sent has ended, or should have."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        assert self._process.wait() == 0, "the load ended with an error"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "sent" in told:
                self.ledger.sent(told["id"], told["sent"])
            else:
                who = {name: told[name] for name in ("worker", "gateway", "why")}
                self.ledger.ended(told["id"], told["ended"], told["outcome"], **who)


class Stand:
    """Made by `standing`. client: the SDK on the first gateway; seed: of everything that is drawn; rate: requests a
    second; thorough: scenarios take the time that their full numbers need."""

    def __init__(
        self,
        suite: Suite,
        client: Client,
        to_etcd: Proxy,
        to_worker: Proxy,
        *,
        seed: int = 1,
        rate: float = 60.0,
        thorough: bool = False,
    ) -> None:
        self.suite, self.client, self.to_etcd, self.to_worker = suite, client, to_etcd, to_worker
        self.seed, self.rate, self.thorough = seed, rate, thorough
        self.store_at = f"127.0.0.1:{suite.ports['etcd_client']}"
        # One loop for all questions to the store: grpc.aio does not like those that come and go.
        self._asking = asyncio.Runner()

    def close(self) -> None:
        """Lets go of the loop."""
        self._asking.close()

    def ask(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer to something that is asked on a loop."""
        return self._asking.run(question)

    @contextmanager
    def apart(self, dress: Dress | Callable[[Ports], Dress]) -> Iterator[Stand]:
        """Another stand beside this one, for what cannot be done to processes that run already."""
        with tempfile.TemporaryDirectory(prefix="apart-") as folder:
            how: dict[str, Any] = {"seed": self.seed, "rate": self.rate, "thorough": self.thorough}
            with standing(Path(folder), dress=dress, **how) as stand:
                yield stand

    @contextmanager
    def load(
        self, gateways: tuple[str, ...] = ("gateway",), timeout: float = 5.0, retries: int = 0, times: float = 1.0
    ) -> Iterator[Load]:
        """Open-loop load, so many times the usual rate; entered when it is being answered by every worker that
        serves."""
        addresses = ",".join(map(self.address, gateways))
        rate = times * self.rate
        arguments = [addresses, MODEL, str(rate), str(self.seed), str(timeout), str(retries)]
        load = Load([sys.executable, "-m", "tests.fault.load", *arguments], rate)
        try:
            load.wait_for(int(3 * self.rate))
            yield load
        finally:
            load.stop()

    def kill(self, name: str) -> float:
        """SIGKILL; when."""
        at = time.monotonic()
        self.suite.kill(name)
        return at

    def ask_to_stop(self, name: str, seconds: float = 90.0) -> float:
        """SIGTERM, and waits until it is gone; seconds that it took."""
        at = time.monotonic()
        self.suite.kill(name, signal.SIGTERM)
        wait_until(lambda: name not in self.suite.running(), seconds)
        return time.monotonic() - at

    @contextmanager
    def frozen(self, name: str) -> Iterator[float]:
        """SIGSTOP for as long; gives when."""
        at = time.monotonic()
        self.suite.kill(name, signal.SIGSTOP)
        try:
            yield at
        finally:
            self.suite.kill(name, signal.SIGCONT)

    @contextmanager
    def slowed(self, name: str, share: float = 0.9, period: float = 0.2) -> Iterator[float]:
        """The process and its children stand still for that share of each period; gives when it began."""
        end = threading.Event()

        def brake() -> None:
            while not end.is_set():
                pids = [self.suite.running()[name], *self.engines(name)]
                for pid in pids:
                    _send(pid, signal.SIGSTOP)
                time.sleep(share * period)
                for pid in pids:
                    _send(pid, signal.SIGCONT)
                time.sleep((1 - share) * period)

        thread = threading.Thread(target=brake)
        at = time.monotonic()
        thread.start()
        try:
            yield at
        finally:
            end.set()
            thread.join()

    def used(self, *names: str) -> float:
        """CPU seconds that these processes have used, their engines left out."""
        running = self.suite.running()
        stats = [Path(f"/proc/{running[name]}/stat").read_text().rpartition(")")[2].split() for name in names]
        return sum(int(each[11]) + int(each[12]) for each in stats) / os.sysconf("SC_CLK_TCK")

    def engines(self, worker: str) -> list[int]:
        """Pids of the engine processes of a worker."""
        return children_of(self.suite.running()[worker])

    def restart(self, name: str) -> None:
        """Starts a process that is gone; returns when it is ready and everything serves."""
        self.suite.start(name)
        self.suite.wait_ready(name)
        self.settle()

    def settle(self) -> None:
        """Waits until every worker serves again what is wanted."""
        self.client.wait_ready(MODEL, timeout=120)
        wait_until(lambda: len(self.replicas()) == len(WORKERS))

    def replicas(self) -> set[str]:
        """Workers that the control plane knows as ready; none while it does not answer."""
        try:
            versions = self.client.status(MODEL).versions
        except errors.PenstockError:
            return set()
        return {
            item.worker for version in versions for item in version.replicas if item.state == pb.REPLICA_STATE_READY
        }

    def leader(self) -> str:
        """Id of the leading scheduler, by the store; empty while nobody leads or the store does not answer."""
        return self.ask(store.leader(self.etcd()))

    def change(self) -> float:
        """Changes a deployment, once that can be done, and back; seconds until the change was carried out."""
        began = time.monotonic()
        wait_until(lambda: self._deployed(len(WORKERS) - 1))
        wait_until(lambda: len(self.replicas()) == len(WORKERS) - 1)
        took = time.monotonic() - began
        self.client.deploy(MODEL, replicas=len(WORKERS), wait=120)
        self.settle()
        return took

    def _deployed(self, replicas: int) -> bool:
        with suppress(errors.PenstockError):
            self.client.deploy(MODEL, replicas=replicas)
            return True
        return False

    def address(self, gateway: str) -> str:
        """host:port of a gateway's gRPC."""
        return f"127.0.0.1:{self.suite.ports[gateway.replace('-', '_') + '_grpc']}"

    def etcd(self) -> str:
        """host:port of the store, as the harness asks it."""
        return self.store_at

    def metric(self, process: str, name: str, **labels: str) -> float:
        """One sample of a process's metrics; 0 where it has none."""
        wanted = name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")
        port = self.suite.ports[f"{process.replace('-', '_')}_admin"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.rpartition(" ")[0] == wanted), 0.0)

    def events(self, process: str, name: str) -> int:
        """How often a process has logged an event since its first start."""
        log = self.suite.state / "logs" / f"{process}.log"
        return log.read_text(errors="replace").count(f'"event": "{name}"')

    def revision(self) -> int:
        """Of the store now."""
        return self.ask(store.revision(self.etcd()))

    def compact(self) -> None:
        """The store forgets how it came to be as it is."""
        self.ask(store.compact(self.etcd()))

    def stale_commands(self, since: int) -> tuple[int, int]:
        """Assignments written since a revision, and those among them that an older leader wrote after a newer one."""
        terms = self.ask(store.terms(self.etcd(), since + 1))
        return len(terms), sum(term < max(terms[: index + 1]) for index, term in enumerate(terms))

    def unlink_socket(self, worker: str) -> None:
        """Gateways reach the worker by its port from now on, where a proxy stands."""
        for path in self.ask(store.sockets(self.etcd(), worker)):
            Path(path).unlink(missing_ok=True)


@contextmanager
def standing(
    state: Path,
    say: Callable[[str], None] = lambda line: None,
    *,
    dress: Dress | Callable[[Ports], Dress] = USUAL,
    **how: Any,
) -> Iterator[Stand]:
    """A suite of three workers and two gateways that serves one model from every worker. dress: or what tells it by the
    ports; how: see Stand."""
    more = [f"worker_3_{kind}" for kind in ("grpc", "admin")]
    more += [f"gateway_2_{kind}" for kind in ("rest", "grpc", "admin")]
    ports = Ports.free(more)
    with ExitStack() as held:
        dress = dress if isinstance(dress, Dress) else dress(ports)
        to_etcd = held.enter_context(Proxy(("127.0.0.1", ports["etcd_client"]), dress.etcd_for))
        port = ports["worker_3_grpc"]
        to_worker = held.enter_context(Proxy((dress.worker_at, port), FAR_HOST, port))
        flags = {PROXIED: [f"--etcd={to_etcd.address}", f"--advertise={FAR_HOST}"]}
        suite = Dressed(
            state, ports, say=say, trace_ratio=None, workers=len(WORKERS), gateways=len(GATEWAYS), flags=flags
        )
        suite.dress = dress
        held.callback(suite.down)
        suite.up()
        client = held.enter_context(Client(f"127.0.0.1:{ports['gateway_grpc']}", timeout=10, retries=3))
        serve(client, _model(state / "models" / MODEL, dress), replicas=len(WORKERS))
        stand = Stand(suite, client, to_etcd, to_worker, **how)
        stand.store_at = dress.store or stand.store_at
        held.callback(stand.close)
        stand.settle()
        yield stand


def _model(folder: Path, dress: Dress) -> Path:
    manifest = models.add_one(folder, MODEL) / "model.yaml"
    content = yaml.safe_load(manifest.read_text())
    for section, more in dress.manifest.items():
        content[section] |= more
    manifest.write_text(yaml.safe_dump(content))
    return folder


def wait_until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Asks until it is so; raises AssertionError when it is not within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} s"
        time.sleep(0.02)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
