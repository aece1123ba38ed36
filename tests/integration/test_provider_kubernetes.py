"""The provider for Kubernetes over HTTP, against an API server that replays exchanges."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import Conflict, NotFound, PenstockError, PermissionDenied, Unauthenticated, Unavailable
from services.scheduler.providers import Provider
from services.scheduler.providers.kubernetes import DELETION_COST, Api, Kubernetes
from tests.harness.certs import Certs
from tests.harness.kubernetes import SCALE, ApiServer, Exchange, account, refused, replaying, scale

NOW = 29_700_000 * 60.0 + 13


def provider(server: ApiServer, folder: Path, *, seconds: float = 10.0) -> Kubernetes:
    return Kubernetes(
        Api(server.address, account(folder), tls=False, seconds=seconds), "penstock-worker-", clock=lambda: NOW
    )


def pod(name: str) -> str:
    return f"/api/v1/namespaces/models/pods/{name}"


def set_to(count: int, revision: str = "7001") -> dict[str, object]:
    return {"metadata": {"resourceVersion": revision}, "spec": {"replicas": count}}


FIRST = {"metadata": {"annotations": {DELETION_COST: "-29700000"}}}


async def test_it_says_how_many_were_asked_for(tmp_path: Path) -> None:
    with replaying([Exchange("GET", SCALE, answer=scale(3)), Exchange("GET", SCALE, answer=scale(0))]) as server:
        found: Provider = provider(server, tmp_path)
        assert await found.size("cpu") == 3
        (tmp_path / "token").write_text("secret-2")
        # Kubernetes leaves a zero out.
        assert await found.size("cpu") == 0
        assert server.tokens == ["Bearer secret-1", "Bearer secret-2"], "a renewed token counts at once"
        server.check()


async def test_growing_is_one_patch(tmp_path: Path) -> None:
    exchanges = [
        Exchange("GET", SCALE, answer=scale(2)),
        Exchange("PATCH", SCALE, body=set_to(5), answer=scale(5, "7002")),
    ]
    with replaying(exchanges) as server:
        await provider(server, tmp_path).resize("cpu", 5, ["worker-x"])
        server.check()


async def test_what_is_so_already_is_left_alone(tmp_path: Path) -> None:
    with replaying([Exchange("GET", SCALE, answer=scale(5))]) as server:
        await provider(server, tmp_path).resize("cpu", 5, ["worker-x"])
        server.check()


async def test_who_is_to_go_is_marked_before_the_number_falls(tmp_path: Path) -> None:
    exchanges = [
        Exchange("GET", SCALE, answer=scale(3)),
        Exchange("PATCH", pod("penstock-worker-cpu-7d9f-abcde"), body=FIRST, answer={"kind": "Pod"}),
        # It has gone by itself.
        Exchange(
            "PATCH",
            pod("penstock-worker-cpu-7d9f-fghij"),
            body=FIRST,
            status=404,
            answer=refused(404, "NotFound", "no"),
        ),
        Exchange("PATCH", SCALE, body=set_to(1), answer=scale(1, "7002")),
    ]
    with replaying(exchanges) as server:
        leaving = ["penstock-worker-cpu-7d9f-abcde", "penstock-worker-cpu-7d9f-fghij"]
        await provider(server, tmp_path).resize("cpu", 1, leaving)
        server.check()


async def test_nobody_is_told_to_go_when_who_goes_could_not_be_said(tmp_path: Path) -> None:
    exchanges = [
        Exchange("GET", SCALE, answer=scale(3)),
        Exchange("PATCH", pod("a"), body=FIRST, status=403, answer=refused(403, "Forbidden", "cannot patch pods")),
    ]
    with replaying(exchanges) as server:
        with pytest.raises(PermissionDenied, match=r"Role of deploy/k8s") as caught:
            await provider(server, tmp_path).resize("cpu", 2, ["a"])
        assert "cannot patch pods" in caught.value.detail and "cannot patch" not in caught.value.message
        server.check()


async def test_a_conflict_is_read_again(tmp_path: Path) -> None:
    conflict = refused(409, "Conflict", "the object has been modified; please apply your changes to the latest version")
    exchanges = [
        Exchange("GET", SCALE, answer=scale(2, "1")),
        Exchange("PATCH", SCALE, body=set_to(4, "1"), status=409, answer=conflict),
        Exchange("GET", SCALE, answer=scale(3, "2")),
        Exchange("PATCH", SCALE, body=set_to(4, "2"), answer=scale(4, "3")),
    ]
    with replaying(exchanges) as server:
        await provider(server, tmp_path).resize("cpu", 4, [])
        server.check()
    again = [
        entry
        for revision in "123"
        for entry in (
            Exchange("GET", SCALE, answer=scale(2, revision)),
            Exchange("PATCH", SCALE, body=set_to(4, revision), status=409, answer=conflict),
        )
    ]
    with replaying(again) as server:
        with pytest.raises(Conflict):
            await provider(server, tmp_path).resize("cpu", 4, [])
        server.check()


@pytest.mark.parametrize(
    ("exchange", "kind", "retry_after"),
    [
        (Exchange("GET", SCALE, 401, refused(401, "Unauthorized", "Unauthorized")), Unauthenticated, None),
        (Exchange("GET", SCALE, 403, refused(403, "Forbidden", "no")), PermissionDenied, None),
        (Exchange("GET", SCALE, 404, refused(404, "NotFound", "no")), NotFound, None),
        (
            Exchange("GET", SCALE, 429, refused(429, "TooManyRequests", "x"), headers=(("Retry-After", "7"),)),
            Unavailable,
            7,
        ),
        (Exchange("GET", SCALE, 429, refused(429, "TooManyRequests", "x")), Unavailable, None),
        (Exchange("GET", SCALE, 503, None, headers=(("Retry-After", "99999"),)), Unavailable, 300),
        (Exchange("GET", SCALE, 503, None, headers=(("Retry-After", "soon"),)), Unavailable, None),
        (Exchange("GET", SCALE, 302, None, headers=(("Location", "http://elsewhere/"),)), Unavailable, None),
        (Exchange("GET", SCALE, raw=b"<html>"), Unavailable, None),
        (Exchange("GET", SCALE, raw=b"[]"), Unavailable, None),
        (Exchange("GET", SCALE, raw=b'{"spec":{"replicas":"3"}}'), Unavailable, None),
        (Exchange("GET", SCALE, raw=b'"' + b"x" * (1 << 20) + b'"'), Unavailable, None),
    ],
    ids=["401", "403", "404", "429", "429 alone", "503 for long", "503 soon", "302", "html", "list", "text", "huge"],
)
async def test_what_the_api_refuses_says_what_to_do(
    tmp_path: Path, exchange: Exchange, kind: type[PenstockError], retry_after: float | None
) -> None:
    with replaying([exchange]) as server:
        with pytest.raises(kind) as caught:
            await provider(server, tmp_path).size("cpu")
        assert caught.value.retry_after == retry_after
        assert "secret" not in caught.value.message + caught.value.detail
        server.check()


async def test_one_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with replaying([Exchange("GET", SCALE, hang=True)]) as server:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await provider(server, tmp_path, seconds=0.2).size("cpu")
        server.check()
    with pytest.raises(Unavailable, match="cannot be reached"):
        await provider(server, tmp_path).size("cpu")


async def test_outside_of_a_pod_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(Unavailable, match="service account has no namespace"):
        await Kubernetes(Api("127.0.0.1:1", tmp_path), "penstock-worker-").size("cpu")
    with pytest.raises(Unavailable, match="runs in no pod"):
        await Api.of_pod().call("GET", "/")


async def test_it_speaks_tls_and_verifies_by_the_ca_of_the_pod(tmp_path: Path) -> None:
    certs, others = Certs.make(tmp_path / "certs"), Certs.make(tmp_path / "others")
    with replaying([Exchange("GET", SCALE, answer=scale(2))], certs) as server:
        folder = account(tmp_path / "account", ca=Path(others.ca))
        reached = Kubernetes(Api(server.address, folder), "penstock-worker-")
        with pytest.raises(Unavailable, match="cannot be reached"):
            await reached.size("cpu")
        account(tmp_path / "account", ca=Path(certs.ca))
        assert await reached.size("cpu") == 2
        server.check()
