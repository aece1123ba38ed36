"""A provider for Kubernetes: a pool is a Deployment, and a worker's id is the name of its pod.

What it asks of the API, and all that its Role must allow (deploy/k8s/scheduler-role.yaml): GET and PATCH of
`deployments/scale`, PATCH of `pods`. Which pod goes first is said beforehand by the annotation
`controller.kubernetes.io/pod-deletion-cost`: of two pods that are equally ready the one with the lower cost goes.

Sources: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/deployment-v1/ (scale),
https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost,
https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/ (address, token and CA of a pod).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from penstock.errors import Conflict, NotFound, PenstockError, PermissionDenied, Unauthenticated, Unavailable

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds `token`, `ca.crt` and `namespace`."""
SECONDS: Final = 10.0
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_MOST_BYTES: Final = 1 << 20
_MOST_PAUSE: Final = 300.0
_TRIES: Final = 3


class Api:
    """The API server as a pod reaches it. address: host:port, empty outside of a pod; account: folder with what a pod
    has of its service account; tls: off only for tests. Token and CA are read at every call, for they are renewed."""

    def __init__(self, address: str, account: Path = ACCOUNT, *, tls: bool = True, seconds: float = SECONDS) -> None:
        self._address = address
        self._account = account
        self._tls = tls
        self._seconds = seconds

    @classmethod
    def of_pod(cls) -> Api:
        """The one that this pod was told of."""
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
        return cls(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else "")

    def namespace(self) -> str:
        """The pod's own. Raises Unavailable outside of a pod."""
        return self._read("namespace")

    async def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request; its answer. Raises the error that its status stands for, Unavailable without an answer."""
        return await asyncio.to_thread(self._call, method, path, body)

    def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        if not self._address:
            raise Unavailable("this scheduler runs in no pod: the provider kubernetes finds no API server there")
        headers = {"Authorization": f"Bearer {self._read('token')}", "Accept": "application/json"}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            # https://www.rfc-editor.org/rfc/rfc7386
            headers["Content-Type"] = "application/merge-patch+json"
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self._connection()
            connection.request(method, path, content, headers)
            # An answer that is not read to its end keeps the socket open after the connection is closed.
            with connection.getresponse() as answer:
                data = answer.read(_MOST_BYTES + 1)
        except (OSError, http.client.HTTPException) as problem:
            raise Unavailable("the Kubernetes API cannot be reached", detail=repr(problem)) from None
        finally:
            if connection is not None:
                connection.close()
        found = _parsed(data)
        if answer.status != 200:
            raise _refused(answer.status, answer.getheader("Retry-After"), found, f"{method} {path}")
        if found is None:
            raise Unavailable("the Kubernetes API answered what is no JSON object", detail=f"{method} {path}")
        return found

    def _connection(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._address, timeout=self._seconds)
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        return http.client.HTTPSConnection(self._address, timeout=self._seconds, context=context)

    def _read(self, name: str) -> str:
        try:
            return (self._account / name).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as problem:
            raise Unavailable(
                f"the pod's service account has no {name}: set automountServiceAccountToken", detail=str(problem)
            ) from None


class Kubernetes:
    """See Provider. prefix: of the names of Deployments. clock: seconds since the epoch."""

    def __init__(self, api: Api, prefix: str, *, clock: Callable[[], float] = time.time) -> None:
        self._api = api
        self._prefix = prefix
        self._clock = clock

    async def size(self, pool: str) -> int:
        """See Provider."""
        return _replicas(await self._api.call("GET", self._scale(pool)))

    async def resize(self, pool: str, count: int, leaving: Sequence[str]) -> None:
        """See Provider."""
        for nth in range(_TRIES):
            found = await self._api.call("GET", self._scale(pool))
            if _replicas(found) == count:
                return
            if count < _replicas(found):
                for worker in leaving:
                    await self._goes_first(worker)
            wish = {
                # Refused with 409 when somebody has changed it since.
                "metadata": {"resourceVersion": found.get("metadata", {}).get("resourceVersion")},
                "spec": {"replicas": count},
            }
            try:
                await self._api.call("PATCH", self._scale(pool), wish)
                return
            except Conflict:
                if nth == _TRIES - 1:
                    raise

    async def _goes_first(self, pod: str) -> None:
        # The later it was said, the lower the cost: what an earlier choice has left behind does not count any more.
        cost = -int(self._clock() // 60)
        path = f"/api/v1/namespaces/{quote(self._api.namespace(), safe='')}/pods/{quote(pod, safe='')}"
        with suppress(NotFound):
            await self._api.call("PATCH", path, {"metadata": {"annotations": {DELETION_COST: str(cost)}}})

    def _scale(self, pool: str) -> str:
        namespace, name = quote(self._api.namespace(), safe=""), quote(self._prefix + pool, safe="")
        return f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"


def _replicas(scale: dict[str, Any]) -> int:
    # Zero is left out of the answer.
    count = scale.get("spec", {}).get("replicas", 0)
    if type(count) is not int or count < 0:
        raise Unavailable("the Kubernetes API answered no number of replicas", detail=repr(count)[:100])
    return count


def _parsed(data: bytes) -> dict[str, Any] | None:
    if len(data) > _MOST_BYTES:
        return None
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _refused(status: int, retry_after: str | None, answer: dict[str, Any] | None, what: str) -> PenstockError:
    """The error for a status other than 200."""
    said = str((answer or {}).get("message", ""))[:500]
    detail = f"{what}: {status} {said}"
    match status:
        case 401:
            return Unauthenticated("the Kubernetes API does not take the scheduler's token", detail=detail)
        case 403:
            return PermissionDenied(
                "the Kubernetes API refuses: give the scheduler's service account the Role of deploy/k8s", detail=detail
            )
        case 404:
            return NotFound("the pool's Deployment is not there: create it, or mend pools and prefix", detail=detail)
        case 409:
            return Conflict("somebody else changes the pool's Deployment at the same time", detail=detail)
        case 429:
            return Unavailable(
                "the Kubernetes API has too many requests", detail=detail, retry_after=_seconds(retry_after)
            )
        case _:
            return Unavailable(
                f"the Kubernetes API answered {status}", detail=detail, retry_after=_seconds(retry_after)
            )


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; a date counts as not said."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    return min(float(text), _MOST_PAUSE)
