"""The admin port: what it says, and that nobody can hold it up."""

from __future__ import annotations

import hashlib
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.kit import admin
from penstock.kit.admin import Admin, Verdict
from penstock.kit.identity import Authenticator


class Process:
    """A process with an admin port."""

    def __init__(self, auth_file: str = "") -> None:
        self.reason: str | None = None
        self.admin = Admin(("127.0.0.1", 0), lambda: Verdict(self.reason), Authenticator(auth_file))
        self.admin.start()

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read().decode()


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    yield made
    made.admin.stop()


def test_readiness_tells_why_not(process: Process) -> None:
    assert process.get("/readyz") == (200, "ok\n")
    process.reason = "routes: not read yet"
    assert process.get("/readyz") == (503, "routes: not read yet\n")
    assert process.get("/healthz") == (200, "ok\n")


def test_a_loop_that_does_not_turn_is_unhealthy(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "STALL_SECONDS", -1.0)
    assert process.get("/healthz") == (503, "the event loop is stuck\n")
    monkeypatch.setattr(admin, "STALL_SECONDS", 5.0)
    process.admin.beat()
    assert process.get("/healthz") == (200, "ok\n")


def test_metrics_and_nothing_else(process: Process) -> None:
    status, text = process.get("/metrics")
    assert status == 200 and "process_cpu_seconds_total" in text
    for path in ("/", "/metrics/", "/../etc/passwd", "/readyz2"):
        assert process.get(path)[0] == 404


def test_metrics_need_a_token_where_callers_are_configured(tmp_path: Path) -> None:
    callers = tmp_path / "callers"
    callers.write_text(f"prometheus {hashlib.sha256(b'scrape').hexdigest()}\n")
    process = Process(str(callers))
    assert process.get("/metrics")[0] == 401
    assert process.get("/metrics", Authorization="Bearer wrong")[0] == 401
    assert process.get("/metrics", Authorization="Bearer scrape")[0] == 200
    assert process.get("/healthz")[0] == process.get("/readyz")[0] == 200
    process.admin.stop()


def test_a_silent_connection_is_let_go_without_a_word(
    process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(admin._Quiet, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", process.admin.port), timeout=10) as silent:
        assert process.get("/healthz")[0] == 200
        assert silent.recv(1) == b"", "the server closes it"
    assert capsys.readouterr().err == ""


def test_the_port_is_free_afterwards_and_taken_before() -> None:
    process = Process()
    with pytest.raises(OSError):
        Admin(("127.0.0.1", process.admin.port), Verdict, Authenticator(""))
    port = process.admin.port
    process.admin.stop()
    again = Admin(("127.0.0.1", port), Verdict, Authenticator(""))
    again.stop()
