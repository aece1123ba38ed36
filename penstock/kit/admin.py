"""The admin port of a process: /metrics for Prometheus, /healthz (it runs), /readyz (it can serve, or why not).

A thread of its own answers, so that a blocked event loop shows as a failing /healthz rather than as silence.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from penstock.errors import Unauthenticated
from penstock.kit.identity import Authenticator
from penstock.kit.metrics import REGISTRY

STALL_SECONDS = 5.0
"""The event loop counts as stuck when it has not turned for so long."""


class Admin:
    """Serves the admin port from `start` to `stop`.

    not_ready: the public reason why the process is not ready, None when it is. authenticator: who may read metrics;
    health is for everybody, so that probes need no token.
    """

    def __init__(self, host: str, port: int, not_ready: Callable[[], str | None], authenticator: Authenticator) -> None:
        self._not_ready = not_ready
        self._authenticator = authenticator
        self._beat = time.monotonic()
        self._server = make_server(host, port, self._answer, server_class=_Threading, handler_class=_Quiet)
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
                self._authenticator.authenticate({"authorization": environ.get("HTTP_AUTHORIZATION", "")})
            except Unauthenticated as refusal:
                start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
                return [f"{refusal.message}\n".encode()]
            start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            return [generate_latest(REGISTRY)]
        if path == "/healthz":
            stuck = time.monotonic() - self._beat > STALL_SECONDS
            return self._say(start_response, "the event loop is stuck" if stuck else None)
        if path == "/readyz":
            return self._say(start_response, self._not_ready())
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"try /metrics, /healthz or /readyz\n"]

    def _say(self, start_response: Callable[..., Any], problem: str | None) -> Iterable[bytes]:
        start_response("503 Service Unavailable" if problem else "200 OK", [("Content-Type", "text/plain")])
        return [f"{problem or 'ok'}\n".encode()]


class _Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that leaves, or says nothing, is not news."""


class _Quiet(WSGIRequestHandler):
    timeout = 10.0  # of the connection: whoever says nothing does not keep a thread

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""
