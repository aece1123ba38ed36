"""A real etcd for tests, started and broken on purpose, and the pytest fixtures that hand it out. Several as one
cluster: tests/harness/etcd_cluster.py.

Fixtures: `etcd_endpoint` is one etcd for the whole session, for tests that only need a store; its keys are wiped
before each test that asks for `clean_etcd`. `etcd` is a process of the test's own, to be killed, frozen or wiped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.local.etcd import etcd_command, find_etcd
from deploy.local.ports import free_ports
from penstock.cluster import keys
from penstock.cluster.etcd import Etcd
from tests.harness.certs import Certs

# Leases of one second are possible only with short elections: etcd's minimum is 1.5 election timeouts, rounded up.
QUICK = ("--heartbeat-interval=50", "--election-timeout=500")


def free_port() -> int:
    """A port of loopback that nobody has, and that no connection is given."""
    (port,) = free_ports(1)
    return port


class EtcdProcess:
    """One etcd on ports of its own, which it keeps over restarts. Methods block: from a test's coroutine use
    `asyncio.to_thread` for those that wait."""

    def __init__(self, folder: Path, *extra: str, certs: Certs | None = None) -> None:
        """extra: flags for this one; certs: it speaks TLS, and asks clients for a certificate of the same CA."""
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._data = folder / "data"
        self._metrics = f"http://127.0.0.1:{free_port()}"
        self._tls: tuple[str, ...] = ()
        flags = [*QUICK, f"--listen-metrics-urls={self._metrics}"]
        if certs is not None:
            self._tls = (f"--cacert={certs.ca}", f"--cert={certs.cert}", f"--key={certs.key}")
            flags += [f"--listen-client-urls=https://{self.endpoint}", f"--trusted-ca-file={certs.ca}"]
            flags += ["--client-cert-auth", f"--cert-file={certs.cert}", f"--key-file={certs.key}"]
            flags += [f"--advertise-client-urls=https://{self.endpoint}"]
        self._binary = find_etcd().path
        self._command = etcd_command(self._binary, self._data, self.port, free_port(), [*flags, *extra])
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers its health endpoint."""
        self.launch()
        self.await_health()

    def launch(self) -> None:
        """Starts it and does not wait: a member of a cluster is healthy once most of them are there."""
        assert self._process is None
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def stop(self) -> None:
        """Ends it cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it with no chance to say anything."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stops it in its tracks; connections stay open and silent."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on after `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Ends it cleanly and starts it again on the same data."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Starts it again on no data at all, as if restored from nothing."""
        self.kill()
        shutil.rmtree(self._data)
        self.start()

    def ctl(self, *words: str) -> str:
        """What an operator types, and what etcdctl prints."""
        command = [str(self._binary.with_name("etcdctl")), f"--endpoints={self.endpoint}", *self._tls, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def restore(self, snapshot: Path) -> None:
        """Starts it again on what `ctl("snapshot", "save", snapshot)` saved, as an operator would."""
        self.kill()
        shutil.rmtree(self._data)
        command = [str(self._binary.with_name("etcdutl")), "snapshot", "restore", str(snapshot)]
        named = [flag for flag in self._command if flag.startswith(("--name", "--initial-"))]
        subprocess.run([*command, f"--data-dir={self._data}", *named], check=True, capture_output=True, timeout=60)
        self.start()

    def metrics(self) -> str:
        """What it counts, in Prometheus' text format."""
        with urllib.request.urlopen(f"{self._metrics}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(timeout=60)
        self._process = None

    def await_health(self) -> None:
        """Waits until it answers its health endpoint."""
        assert self._process is not None
        deadline = time.monotonic() + 60
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd does not start: {(self._folder / 'etcd.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._metrics}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False


@pytest.fixture(scope="session")
def etcd_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of an etcd that lives for the whole session."""
    process = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    process.start()
    yield process.endpoint
    process.stop()


@pytest.fixture
async def clean_etcd(etcd_endpoint: str) -> str:
    """The session's etcd with none of Penstock's keys in it."""
    client = Etcd([etcd_endpoint])
    for item in (await client.range(keys.PREFIX)).items:
        await client.delete(item.key)
    await client.close()
    return etcd_endpoint


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd of the test's own, running."""
    process = EtcdProcess(tmp_path / "etcd")
    process.start()
    yield process
    if process.running:
        process.kill()


@pytest.fixture
async def store(clean_etcd: str) -> AsyncIterator[Etcd]:
    """A client of the session's etcd, with none of Penstock's keys in it."""
    client = Etcd([clean_etcd])
    yield client
    await client.close()
