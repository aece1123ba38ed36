"""The calls that say what should run, show what does, and wait for the one to become the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from penstock import names
from penstock.client import readiness
from penstock.client.connection import Connection
from penstock.client.payload import Version, version_text
from penstock.errors import DeadlineExceeded, NotFound, Unavailable
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2 as cluster
from penstock.v1 import manifest_pb2 as manifest
from penstock.v1 import models_pb2 as pb

DEFAULT_WAIT: Final = 300.0
"""Seconds that `wait=True` waits."""
FAILED_GRACE: Final = 10.0
"""Seconds a failed replica has to recover before waiting for it is given up."""
REOPEN_PAUSE: Final = 0.2
ROUTED_SECONDS: Final = 10.0
"""How long a gateway may take to hear of a ready replica."""
ROUTED_PAUSE: Final = 0.02

OnStatus = Callable[[cluster.ClusterStatus], None]


class ClusterCalls:
    """What registry and scheduler answer; every call may raise any class of `penstock.errors`."""

    _connection: Connection

    async def deploy(
        self,
        name: str,
        version: Version = None,
        *,
        replicas: int | None = None,
        scaling: pb.Scaling | None = None,
        placement: manifest.Placement | None = None,
        tenant: str | None = None,
        keep_others: bool = False,
        override_gate: str = "",
        wait: bool | float = False,
        on_status: OnStatus | None = None,
        timeout: float | None = None,
    ) -> pb.Deployment:
        """Wants a version to run, and returns the deployment as recorded. Safe to repeat.

        Of replicas, scaling, placement and tenant, what is said replaces all that was said before. When nothing is, the
        version runs as it did, a new one as the default version does, the first with one replica.

        Args:
            name, version: what to deploy: a number, an alias, or None for the newest.
            replicas: how many copies, on different workers where possible; 1 without.
            scaling: how their number follows demand, instead of `replicas`.
            placement: where they run, instead of what the manifest says.
            tenant: whose reserved capacity they may use.
            keep_others: leave other versions and the default where they are; without it they retire once this one is
                ready.
            override_gate: why a version whose gate failed is deployed all the same; recorded with the caller's name.
            wait: until all replicas (with scaling: the least of them) are ready: seconds, or True for 300.
            on_status: told of every picture of the cluster while waiting.
            timeout: seconds of the call itself.

        Raises:
            NotFound, GateFailed; and while waiting DeadlineExceeded, or Unavailable when replicas keep failing, with
            the reason.
        """
        if keep_others and wait is not False and not isinstance(version, int):
            # The answer names the default version only; to wait for this one its number must be known.
            version = await self._number(name, version, timeout)
        request = pb.DeployRequest(
            name=names.model(name),
            version=version_text(version),
            replicas=replicas or 0,
            scaling=scaling,
            placement=placement,
            tenant=tenant or "",
            keep_others=keep_others,
            keep_options=replicas is None and scaling is None and placement is None and tenant is None,
            override_gate=override_gate,
        )
        answer = await self._connection.call(
            self._connection.stubs.deployments.Deploy, request, timeout=timeout, retries=self._connection.retries
        )
        deployment = answer.deployment
        if wait is not False:
            number = version if keep_others and isinstance(version, int) else deployment.default_version
            wanted = next(entry for entry in deployment.versions if entry.version == number)
            await self._wait(
                name,
                lambda status: readiness.unmet_deploy(status, name, wanted, not keep_others),
                wait,
                on_status,
                version=number,
            )
            if wanted.replicas:
                await self._until_routed(name, number)
        return deployment

    async def undeploy(
        self,
        name: str,
        version: int = 0,
        *,
        wait: bool | float = False,
        on_status: OnStatus | None = None,
        timeout: float | None = None,
    ) -> None:
        """Wants a version (0: the whole model) gone. Safe to repeat. wait, on_status and timeout as in deploy."""
        request = pb.UndeployRequest(name=names.model(name), version=version)
        stub = self._connection.stubs.deployments
        await self._connection.call(stub.Undeploy, request, timeout=timeout, retries=self._connection.retries)
        if wait is not False:
            await self._wait(
                name, lambda status: readiness.unmet_undeploy(status, name, version), wait, on_status, version=None
            )

    async def deployments(self, *, timeout: float | None = None) -> list[pb.Deployment]:
        """What is wanted, by name."""
        stub = self._connection.stubs.deployments
        answer = await self._connection.read_only(stub.ListDeployments, pb.ListDeploymentsRequest(), timeout)
        return list(answer.deployments)

    async def status(self, name: str = "", *, timeout: float | None = None) -> cluster.ClusterStatus:
        """What runs where, and why something does not; of one model when it is named."""
        request = cluster.GetStatusRequest(name=names.model(name) if name else "")
        answer = await self._connection.read_only(self._connection.stubs.cluster.GetStatus, request, timeout)
        return answer.status

    async def watch_status(
        self, name: str = "", *, timeout: float | None = None
    ) -> AsyncGenerator[cluster.ClusterStatus]:
        """The status now and after every change, until the caller leaves or `timeout` seconds have passed."""
        request = cluster.WatchStatusRequest(name=names.model(name) if name else "")
        call = self._connection.stubs.cluster.WatchStatus(request, timeout=timeout, metadata=self._connection.headers())
        async with aclosing(self._connection.read(call)) as answers:
            async for answer in answers:
                yield answer.status

    async def explain(
        self, name: str, version: int = 0, *, timeout: float | None = None
    ) -> list[cluster.PlacementExplanation]:
        """Why each deployed version of a model (0: all) runs where it does, why not elsewhere, and what would make it
        fit, lowest version first. Raises NotFound when it is not deployed."""
        request = cluster.ExplainPlacementRequest(name=names.model(name), version=version)
        answer = await self._connection.read_only(self._connection.stubs.cluster.ExplainPlacement, request, timeout)
        return list(answer.versions)

    async def drain(
        self,
        worker: str,
        *,
        wait: bool | float = False,
        on_status: OnStatus | None = None,
        timeout: float | None = None,
    ) -> None:
        """Wants a worker empty: it takes nothing new, and its replicas go as others are ready in their place. Safe to
        repeat; holds until `undrain`.

        Args:
            worker: its id, as the status has it.
            wait: until it is empty: seconds, or True for 300. What has no other place goes on serving where it is.
            on_status: told of every picture of the cluster while waiting.
            timeout: seconds of the call itself.

        Raises:
            NotFound; and while waiting DeadlineExceeded, with what is left and why.
        """
        request = cluster.DrainWorkerRequest(worker=worker)
        stub = self._connection.stubs.cluster.DrainWorker
        await self._connection.call(stub, request, timeout=timeout, retries=self._connection.retries)
        if wait is not False:
            await self._wait(
                "", lambda status: readiness.unmet_drain(status, worker), wait, on_status, version=None, patient=True
            )

    async def undrain(self, worker: str, *, timeout: float | None = None) -> None:
        """Takes `drain` back: the worker may have replicas again. Safe to repeat. Raises NotFound."""
        request = cluster.UndrainWorkerRequest(worker=worker)
        stub = self._connection.stubs.cluster.UndrainWorker
        await self._connection.call(stub, request, timeout=timeout, retries=self._connection.retries)

    async def wait_ready(
        self, name: str = "", *, timeout: float = DEFAULT_WAIT, on_status: OnStatus | None = None
    ) -> None:
        """Waits until everything wanted is ready: of one model, or of all.

        Raises DeadlineExceeded, or Unavailable when replicas keep failing, with the reason.
        """
        await self._wait(name, lambda status: readiness.unmet_all(status, name), timeout, on_status, version=None)

    async def _until_routed(self, name: str, version: int) -> None:
        """Waits until the gateway, which watches what the scheduler watches, knows it too: the next request works."""
        request = oip.ModelReadyRequest(name=name, version=str(version))
        loop = asyncio.get_running_loop()
        end = loop.time() + ROUTED_SECONDS
        while not (await self._connection.read_only(self._connection.stubs.inference.ModelReady, request, None)).ready:
            if loop.time() > end:
                raise Unavailable(f"version {version} of model '{name}' is ready, but the gateway does not know it yet")
            await asyncio.sleep(ROUTED_PAUSE)

    async def _number(self, name: str, version: Version, timeout: float | None) -> int:
        request = pb.GetVersionRequest(name=names.model(name), version=version_text(version))
        answer = await self._connection.read_only(self._connection.stubs.models.GetVersion, request, timeout)
        return answer.version.version

    async def _wait(
        self,
        name: str,
        unmet: Callable[[cluster.ClusterStatus], str],
        wait: bool | float,
        on_status: OnStatus | None,
        *,
        version: int | None,
        patient: bool = False,
    ) -> None:
        """Follows the status until `unmet` has nothing left to say; survives a scheduler that is replaced meanwhile.

        version: the one whose failures end the waiting early, None for any of `name`. patient: none does.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (DEFAULT_WAIT if wait is True else float(wait))
        reason, failed_since = "the cluster has not said anything yet", None
        try:
            async with asyncio.timeout_at(deadline) as limit:
                while True:
                    try:
                        async with aclosing(self.watch_status(name)) as pictures:
                            async for status in pictures:
                                if on_status is not None:
                                    on_status(status)
                                reason = unmet(status)
                                if not reason:
                                    return
                                failed = not patient and _failed(status, name, version)
                                failed_since = (failed_since or loop.time()) if failed else None
                                grace_end = deadline if failed_since is None else failed_since + FAILED_GRACE
                                limit.reschedule(min(deadline, grace_end))
                    except (Unavailable, NotFound) as error:
                        reason = error.message
                    await asyncio.sleep(REOPEN_PAUSE)
        except TimeoutError:
            if failed_since is not None and loop.time() < deadline:
                raise Unavailable(reason) from None
            raise DeadlineExceeded(f"not in time: {reason}") from None


def _failed(status: cluster.ClusterStatus, name: str, version: int | None) -> bool:
    return any(
        readiness.has_failed(entry)
        for entry in status.versions
        if name in ("", entry.name) and version in (None, entry.version)
    )
