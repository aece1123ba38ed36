"""An API server of Kubernetes that replays exchanges: each says what must be asked next, and what is answered.

The answers have the form that the API reference gives them (Scale of autoscaling/v1, Pod, Status of meta/v1). They were
written down by hand from it: no cluster was at hand to record one.
"""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.certs import Certs

SCALE = "/apis/apps/v1/namespaces/models/deployments/penstock-worker-cpu/scale"


@dataclass(frozen=True)
class Exchange:
    """One question and its answer. body: of the question, None for no body. raw: answered as it is instead of `answer`;
    None with no answer: the connection is held until the test ends."""

    method: str
    path: str
    status: int = 200
    answer: Any = None
    body: Any = None
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None
    hang: bool = False


def scale(replicas: int, revision: str = "7001") -> dict[str, Any]:
    """A Scale; zero is left out, as Go's `omitempty` does."""
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": "penstock-worker-cpu",
            "namespace": "models",
            "uid": "0b1f6c1e-5a55-4c61-8a0e-6f6f0e9d3a10",
            "resourceVersion": revision,
            "creationTimestamp": "2026-11-25T02:00:00Z",
        },
        "spec": {"replicas": replicas} if replicas else {},
        "status": {"replicas": replicas, "selector": "app=penstock-worker,pool=cpu"},
    }


def refused(code: int, reason: str, message: str) -> dict[str, Any]:
    """A Status that says no."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


@dataclass
class ApiServer:
    """What was asked, and what went otherwise than written. address: host:port."""

    exchanges: list[Exchange]
    address: str = ""
    tokens: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Everything was asked, in order, and nothing else."""
        assert not self.strange and not self.exchanges, (self.strange, self.exchanges)


@contextmanager
def replaying(exchanges: Sequence[Exchange], certs: Certs | None = None) -> Iterator[ApiServer]:
    """Runs one, with TLS when there are certificates."""
    server = ApiServer(list(exchanges))
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    if certs is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certs.cert, certs.key)
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
    server.address = f"127.0.0.1:{listening.server_address[1]}"
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        listening.shutdown()
        thread.join()
        listening.server_close()


def account(folder: Path, token: str = "secret-1", ca: Path | None = None) -> Path:
    """What a pod has of its service account."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token + "\n")
    (folder / "namespace").write_text("models")
    if ca is not None:
        (folder / "ca.crt").write_bytes(ca.read_bytes())
    return folder


def _handler(server: ApiServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers by the list."""

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            server.tokens.append(self.headers.get("Authorization", ""))
            asked = (self.command, self.path, body)
            if not server.exchanges:
                server.strange.append(f"{asked} after the last")
                self.send_error(500)
                return
            exchange = server.exchanges.pop(0)
            if asked != (exchange.method, exchange.path, exchange.body):
                server.strange.append(f"{asked} instead of {exchange}")
            if body is not None and self.headers["Content-Type"] != "application/merge-patch+json":
                server.strange.append(f"a patch of type {self.headers['Content-Type']}")
            if exchange.hang:
                server.over.wait()
                return
            data = json.dumps(exchange.answer).encode() if exchange.raw is None else exchange.raw
            self.send_response(exchange.status)
            for name, value in exchange.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PATCH = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    return Handler
