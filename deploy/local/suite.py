"""Starts, watches and stops the suite from one table of processes.

A process starts when what it depends on is ready; readiness is asked of its admin port, never slept for. Stopping
drains: SIGTERM in reverse order, SIGKILL only after the drain time. State lies in one folder: `run.json` (who runs,
runfile.py), `logs/`, `etcd/`, `registry/`, `worker-N/`, `traces.jsonl`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.local.etcd import etcd_command, find_etcd
from deploy.local.ports import Ports
from deploy.local.runfile import RunFile, began_at

ROOT = Path(__file__).resolve().parent.parent.parent
READY_SECONDS = 180.0
"""What a busy machine may need. A process that has ended is not waited for."""
STOP_SECONDS = 40.0
POOL = "local"
"""Name of the one pool that a local run may have."""


class SuiteError(Exception):
    """The suite cannot start or go on; the message says why and where to look."""


@dataclass(frozen=True)
class Process:
    """One row of the table. ready_url answers 200 when the process can serve; depends names rows to wait for."""

    name: str
    command: list[str]
    ready_url: str
    depends: tuple[str, ...] = ()


class Suite:
    """The suite over one state folder.

    say: gets one line per step, for people. environment: added to every process's own. trace_ratio: share of calls
    that are traced, None for no tracing at all. gateway_processes: that each gateway starts, 0 for one per core.
    workers, gateways: how many; those beyond deploy/ports.env need ports of their names. flags: after all others, by
    name of the process. pool: least and most workers when the schedulers are to start and stop them; `workers` are then
    the least.
    """

    def __init__(
        self,
        state: Path,
        ports: Ports,
        *,
        say: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] | None = None,
        trace_ratio: float | None = 0.01,
        gateway_processes: int = 1,
        workers: int = 2,
        gateways: int = 1,
        flags: Mapping[str, Sequence[str]] | None = None,
        pool: tuple[int, int] | None = None,
    ) -> None:
        self.state = state
        self.ports = ports
        self.run = RunFile(state)
        if pool is not None and "," in str(state):
            raise SuiteError(f"{state} has a comma, which the schedulers' list of arguments cannot have")
        self._pool = pool
        workers = workers if pool is None else pool[0]
        self._say = say
        self._environment = dict(environment or {})
        self._trace_ratio = trace_ratio
        self._gateway_processes = gateway_processes
        self._workers = [f"worker-{number + 1}" for number in range(workers)]
        self._gateways = ["gateway", *(f"gateway-{number + 1}" for number in range(1, gateways))]
        self._flags = dict(flags or {})
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.etcd = find_etcd()

    @classmethod
    def found(cls, state: Path, say: Callable[[str], None] = lambda line: None) -> Suite:
        """The suite that runs over this folder, with all its workers, as far as it can be seen from outside: the
        environment is the caller's. Raises SuiteError when nothing runs."""
        run = RunFile(state).read()
        if not run.settings:
            raise SuiteError(f"nothing runs over {state}")
        settings: dict[str, Any] = {**run.settings, "pool": tuple(run.settings["pool"] or ()) or None}
        suite = cls(state, Ports(run.ports), say=say, **settings)
        running = suite.running()
        if not running:
            raise SuiteError(f"nothing runs over {state}")
        if suite._pool is not None:
            there = (name for name in running if name.startswith("worker-") and name not in run.leaving)
            suite._workers = sorted(there, key=lambda name: int(name.rpartition("-")[2]))
        return suite

    def employ(self, name: str) -> None:
        """Adds a worker to the table; its ports must be there."""
        if name not in self._workers:
            self._workers.append(name)

    # The table.

    def table(self) -> list[Process]:
        """Every process, in an order in which each comes after what it depends on."""
        ports, state = self.ports, self.state
        etcd = etcd_command(self.etcd.path, state / "etcd", ports["etcd_client"], ports["etcd_peer"])
        labels = [] if self._pool is None else [f"--labels=pool={POOL}"]
        rows = [
            Process("etcd", etcd, f"http://127.0.0.1:{ports['etcd_client']}/health"),
            self._service("registry", "registry", f"--data-dir={state / 'registry'}"),
            self._service("scheduler", "scheduler-1", *self._resizing()),
            self._service("scheduler", "scheduler-2", *self._resizing()),
            *(self._service("worker", name, f"--cache-dir={state / name}", *labels) for name in self._workers),
            *(
                self._service(
                    "gateway",
                    name,
                    f"--http-port={ports[f'{_key(name)}_rest']}",
                    f"--processes={self._gateway_processes}",
                )
                for name in self._gateways
            ),
        ]
        return rows

    def _resizing(self) -> list[str]:
        """Flags that let a scheduler start and stop workers."""
        if self._pool is None:
            return []
        least, most = self._pool
        command = ",".join((sys.executable, "-m", "deploy.local.resize", str(self.state)))
        return ["--provider=command", f"--provider-command={command}", f"--pools={POOL}:{least}:{most}"]

    def _service(self, service: str, name: str, *flags: str) -> Process:
        key = _key(name)
        admin = self.ports[f"{key}_admin"]
        command = [
            sys.executable,
            "-m",
            f"services.{service}",
            f"--config={ROOT / 'deploy' / 'config' / f'{service}.toml'}",
            f"--id={name}",
            f"--port={self.ports[f'{key}_grpc']}",
            f"--admin-port={admin}",
            f"--etcd=127.0.0.1:{self.ports['etcd_client']}",
            *flags,
        ]
        if self._trace_ratio is not None:
            command += [f"--trace-file={self.state / 'traces.jsonl'}", f"--trace-ratio={self._trace_ratio}"]
        command += self._flags.get(name, ())
        return Process(name, command, f"http://127.0.0.1:{admin}/readyz", depends=("etcd",))

    # Starting.

    def up(self, timeout: float = READY_SECONDS) -> None:
        """Starts everything and waits until everything is ready; on failure stops what it began. Raises SuiteError."""
        if taken := self.ports.taken():
            name, port = taken[0]
            raise SuiteError(
                f"port {port} ({name}) is in use by another program; "
                f"move it with PENSTOCK_PORT_{name.upper()}=<port>, or stop that program"
            )
        with self.run.changing() as run:
            run.stopping, run.leaving, run.ports = False, [], {}
        if self.etcd.warning:
            self._say(f"note: {self.etcd.warning}")
        deadline = time.monotonic() + timeout
        try:
            waiting = {row.name: row for row in self.table()}
            ready: set[str] = set()
            while waiting:
                for row in list(waiting.values()):
                    if row.name not in self._children and ready.issuperset(row.depends):
                        self.start(row.name)
                    if row.name in self._children and self.is_ready(row):
                        ready.add(row.name)
                        del waiting[row.name]
                        self._say(f"{row.name} is ready")
                self._check_alive(waiting.values(), deadline, timeout)
        except BaseException:
            self.down()
            raise

    def start(self, name: str) -> None:
        """Starts one process of the table and remembers it; does not wait."""
        row = next(row for row in self.table() if row.name == name)
        logs = self.state / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                row.command,
                cwd=ROOT,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for the supervisor, which then drains in order.
                start_new_session=True,
            )
        self._write()

    def wait_ready(self, name: str, timeout: float = READY_SECONDS) -> None:
        """Waits until one process is ready; raises SuiteError."""
        row = next(row for row in self.table() if row.name == name)
        deadline = time.monotonic() + timeout
        while not self.is_ready(row):
            self._check_alive([row], deadline, timeout)

    def is_ready(self, row: Process) -> bool:
        """Asks the process itself."""
        try:
            with urllib.request.urlopen(row.ready_url, timeout=2.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            # URLError and HTTPError (503: not ready) are OSErrors too.
            return False

    def _check_alive(self, waiting: Iterable[Process], deadline: float, timeout: float) -> None:
        for row in waiting:
            child = self._children.get(row.name)
            if child is not None and child.poll() is not None:
                raise SuiteError(
                    f"{row.name} ended with status {child.returncode}; its last words:\n{self.tail(row.name)}"
                )
        names = ", ".join(row.name for row in waiting)
        if names and time.monotonic() > deadline:
            raise SuiteError(f"not ready after {timeout:.0f} s: {names}; see {self.state / 'logs'}")
        if names:
            # The interval of asking, not a guess of how long a start takes.
            time.sleep(0.05)

    def tail(self, name: str, lines: int = 15) -> str:
        """The end of a process's log."""
        path = self.state / "logs" / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"

    # Stopping.

    def down(self, timeout: float = STOP_SECONDS) -> list[str]:
        """Drains and stops everything, gateway first and etcd last; returns the names of those that had to be killed.

        Also stops a suite that another process started over the same state folder.
        """
        if self.run.read().processes:
            # Whoever would start a worker in place of one that stops must not.
            with self.run.changing() as run:
                run.stopping = True
        running = self.running()
        killed: list[str] = []
        waves = (("gateway",), ("worker",), ("scheduler", "registry"), ("etcd",))
        for wave in waves:
            group = {name: pid for name, pid in running.items() if name.startswith(wave)}
            for pid in group.values():
                send(pid, signal.SIGTERM)
            deadline = time.monotonic() + timeout
            for name, pid in group.items():
                while self._alive(name, pid) and time.monotonic() < deadline:
                    time.sleep(0.02)
                if self._alive(name, pid):
                    killed.append(name)
                    send(pid, signal.SIGKILL)
                    while self._alive(name, pid):
                        time.sleep(0.02)
                self._say(f"{name} {'was killed: it did not drain in time' if name in killed else 'stopped'}")
        for child in self._children.values():
            # One that had ended before was not stopped here, and has not been waited for yet.
            if child.poll() is None:
                child.kill()
            child.wait()
        self._children.clear()
        self.run.remove()
        return killed

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to one process; SIGKILL is waited for."""
        child = self._children[name]
        child.send_signal(number)
        if number is signal.SIGKILL:
            child.wait()

    # Who runs.

    def running(self) -> dict[str, int]:
        """Name to pid of what runs, by this object or by another over the same folder."""
        return {name: pid for name, pid in self.run.read().processes.items() if self._alive(name, pid)}

    def _alive(self, name: str, pid: int) -> bool:
        child = self._children.get(name)
        if child is not None and child.pid == pid:
            return child.poll() is None
        # A pid may have been given to another program since.
        return began_at(pid) == self.run.read().began.get(name, 0)

    def _write(self) -> None:
        with self.run.changing() as run:
            others = {name: pid for name, pid in run.processes.items() if self._alive(name, pid)}
            run.processes = {name: child.pid for name, child in self._children.items()} | others
            run.began = {name: began_at(pid) or 0 for name, pid in run.processes.items()}
            run.ports |= dict(self.ports.items())
            run.settings = {
                "trace_ratio": self._trace_ratio,
                "gateway_processes": self._gateway_processes,
                "workers": len(self._workers),
                "gateways": len(self._gateways),
                "pool": self._pool,
            }


def _key(name: str) -> str:
    """A process's name as the table of ports has it."""
    return name.replace("-", "_")


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
