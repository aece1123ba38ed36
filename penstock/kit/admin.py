"""The admin port of a process: /metrics for Prometheus, /healthz (it runs), /readyz (it can serve, or why not).

A thread of its own answers, so that a blocked event loop shows as a failing /healthz rather than as silence. A process
that a supervisor started has a unix socket for it instead, in a folder that nobody else may enter.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_LATEST

from penstock.errors import Unauthenticated
from penstock.kit.identity import Authenticator
from penstock.kit.metrics import exposition

STALL_SECONDS = 5.0
"""The event loop counts as stuck when it has not turned for so long."""


@dataclass(frozen=True)
class Verdict:
    """problem: in public words, None when there is none; note: what there is to say nevertheless."""

    problem: str | None = None
    note: str = ""


class Admin:
    """Serves from `start` to `stop`, on a port or on the path of a unix socket.

    ready, alive: asked by the thread that answers; alive only while the loop turns. metrics: the text of all, None when
    it cannot be had. authenticator: who may read it, None for everybody; health is for everybody, so that probes need
    no token.
    Raises OSError when the port cannot be taken.
    """

    def __init__(
        self,
        at: tuple[str, int] | Path,
        ready: Callable[[], Verdict],
        authenticator: Authenticator | None,
        *,
        alive: Callable[[], Verdict] = Verdict,
        metrics: Callable[[], bytes | None] = exposition,
    ) -> None:
        self._ready, self._alive, self._metrics = ready, alive, metrics
        self._authenticator = authenticator
        self._beat = time.monotonic()
        host, port = (str(at), 0) if isinstance(at, Path) else at
        kind = _Local if isinstance(at, Path) else _Threading
        self._server = make_server(host, port, self._answer, server_class=kind, handler_class=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, name="admin", daemon=True)

    @property
    def port(self) -> int:
        """The port that was taken."""
        return self._server.server_port

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def beat(self) -> None:
        """The event loop says that it turns."""
        self._beat = time.monotonic()

    def stop(self) -> None:
        """Stops answering and frees the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            try:
                if self._authenticator is not None:
                    self._authenticator.authenticate({"authorization": environ.get("HTTP_AUTHORIZATION", "")})
            except Unauthenticated as refusal:
                start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
                return [f"{refusal.message}\n".encode()]
            if (text := self._metrics()) is None:
                return _said(start_response, Verdict("the counts cannot be had"))
            start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            return [text]
        if path == "/healthz":
            stuck = time.monotonic() - self._beat > STALL_SECONDS
            return _said(start_response, Verdict("the event loop is stuck") if stuck else self._alive())
        if path == "/readyz":
            return _said(start_response, self._ready())
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"try /metrics, /healthz or /readyz\n"]


def _said(start_response: Callable[..., Any], verdict: Verdict) -> Iterable[bytes]:
    status = "503 Service Unavailable" if verdict.problem else "200 OK"
    start_response(status, [("Content-Type", "text/plain")])
    return [f"{verdict.problem or (f'ok: {verdict.note}' if verdict.note else 'ok')}\n".encode()]


class _Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that leaves, or says nothing, is not news."""


class _Local(_Threading):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        """Takes the path; there is no name or port to ask the system for."""
        self.socket.bind(str(self.server_address[0]))
        self.server_name, self.server_port = "localhost", 0
        self.setup_environ()

    def get_request(self) -> tuple[socket.socket, Any]:
        """A peer on a unix socket has no address; the handler wants one to show."""
        return self.socket.accept()[0], ("local", 0)


class _Quiet(WSGIRequestHandler):
    timeout = 10.0  # of the connection: whoever says nothing does not keep a thread

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""
