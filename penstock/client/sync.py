"""Client: AsyncClient for code without asyncio. The same calls with the same arguments, which wait.

The calls run on an event loop in a thread of the client's own; there is no second copy of any logic. A client may be
used from any number of threads. Callbacks (`progress`, `on_status`) run on the client's thread and may not call it.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from penstock.client.aio import AsyncClient
from penstock.client.builds import OnLine
from penstock.client.cluster import DEFAULT_WAIT, OnStatus
from penstock.client.connection import DEFAULT_TIMEOUT
from penstock.client.payload import InferRequest, Inputs, Parameter, Version
from penstock.client.result import InferResult, StreamReply
from penstock.client.thread_loop import ThreadLoop
from penstock.client.trace import current_traceparent
from penstock.client.upload import OnProgress
from penstock.oip import inference_pb2 as oip
from penstock.v1 import builds_pb2, tenants_pb2
from penstock.v1 import cluster_pb2 as cluster
from penstock.v1 import manifest_pb2 as manifest
from penstock.v1 import models_pb2 as pb
from penstock.v1 import storage_pb2 as storage

T = TypeVar("T")
_END = object()


class Client:
    """AsyncClient's calls, waiting. Arguments, results and errors are documented there."""

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retries: int = 2,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        trace_context: Callable[[], str | None] = current_traceparent,
    ) -> None:
        self._aio = AsyncClient(
            address,
            token=token,
            timeout=timeout,
            retries=retries,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            trace_context=trace_context,
        )
        self._loop = ThreadLoop()
        # Closes a forgotten client too, at the latest before the interpreter ends.
        self._finalizer = weakref.finalize(self, self._loop.close, self._aio.close)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and ends the client's thread. Safe to repeat."""
        self._finalizer()

    @property
    def address(self) -> str:
        """The gateway's host:port."""
        return self._aio.address

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: Version = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
        priority: int | None = None,
        retries: int | None = None,
    ) -> InferResult:
        """Runs a model once; see AsyncClient.infer."""
        return self._loop.run(
            self._aio.infer(
                model,
                inputs,
                version=version,
                outputs=outputs,
                parameters=parameters,
                request_id=request_id,
                timeout=timeout,
                priority=priority,
                retries=retries,
            )
        )

    def stream(self, requests: Iterable[InferRequest], *, timeout: float | None = None) -> Iterator[StreamReply]:
        """Replies to a stream of requests; see AsyncClient.stream. `requests` is read from a thread of its own."""
        return self._iterate(self._aio.stream(_off_loop(requests), timeout=timeout))

    def server_live(self, *, timeout: float | None = None) -> bool:
        """Whether the server answers."""
        return self._loop.run(self._aio.server_live(timeout=timeout))

    def server_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server takes inference requests."""
        return self._loop.run(self._aio.server_ready(timeout=timeout))

    def server_metadata(self, *, timeout: float | None = None) -> oip.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return self._loop.run(self._aio.server_metadata(timeout=timeout))

    def model_ready(self, model: str, version: Version = None, *, timeout: float | None = None) -> bool:
        """Whether a model takes requests now."""
        return self._loop.run(self._aio.model_ready(model, version, timeout=timeout))

    def model_metadata(
        self, model: str, version: Version = None, *, timeout: float | None = None
    ) -> oip.ModelMetadataResponse:
        """Inputs and outputs of a model."""
        return self._loop.run(self._aio.model_metadata(model, version, timeout=timeout))

    def model_config(self, model: str, version: Version = None, *, timeout: float | None = None) -> oip.ModelConfig:
        """Configuration of a model in Triton's form."""
        return self._loop.run(self._aio.model_config(model, version, timeout=timeout))

    def model_statistics(
        self, model: str = "", version: Version = None, *, timeout: float | None = None
    ) -> list[oip.ModelStatistics]:
        """Counts and times per version."""
        return self._loop.run(self._aio.model_statistics(model, version, timeout=timeout))

    def models(
        self,
        query: str = "",
        tags: Mapping[str, str] | None = None,
        *,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> Iterator[pb.Model]:
        """Models by name, page after page."""
        return self._iterate(self._aio.models(query, tags, page_size=page_size, timeout=timeout))

    def model(self, name: str, *, timeout: float | None = None) -> pb.Model:
        """One model with its aliases."""
        return self._loop.run(self._aio.model(name, timeout=timeout))

    def versions(self, name: str, *, page_size: int = 0, timeout: float | None = None) -> Iterator[pb.ModelVersion]:
        """Versions of a model, newest first."""
        return self._iterate(self._aio.versions(name, page_size=page_size, timeout=timeout))

    def version(self, name: str, version: Version = None, *, timeout: float | None = None) -> pb.ModelVersion:
        """One version by number or alias."""
        return self._loop.run(self._aio.version(name, version, timeout=timeout))

    def publish(
        self,
        path: str | Path,
        *,
        version: int = 0,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> pb.ModelVersion:
        """Uploads a model's files and publishes its next version; see AsyncClient.publish."""
        return self._loop.run(self._aio.publish(path, version=version, progress=progress, timeout=timeout))

    def upload(self, path: str | Path, *, progress: OnProgress | None = None) -> pb.Artifact:
        """Uploads one file."""
        return self._loop.run(self._aio.upload(path, progress=progress))

    def build(
        self,
        name: str,
        version: Version = None,
        *,
        spec: manifest.BuildSpec | None = None,
        wait: bool | float = False,
        on_line: OnLine | None = None,
        request_key: str = "",
        timeout: float | None = None,
    ) -> builds_pb2.Build:
        """Has a version built; see AsyncClient.build."""
        return self._loop.run(
            self._aio.build(
                name,
                version,
                spec=spec,
                wait=wait,
                on_line=on_line,
                request_key=request_key,
                timeout=timeout,
            )
        )

    def ended_build(
        self, build: builds_pb2.Build, *, wait: bool | float = True, on_line: OnLine | None = None
    ) -> builds_pb2.Build:
        """Follows a build to its end; see AsyncClient.ended_build."""
        return self._loop.run(self._aio.ended_build(build, wait=wait, on_line=on_line))

    def builds(self, name: str = "", *, page_size: int = 0, timeout: float | None = None) -> Iterator[builds_pb2.Build]:
        """Builds, newest first."""
        return self._iterate(self._aio.builds(name, page_size=page_size, timeout=timeout))

    def get_build(self, build_id: str, *, timeout: float | None = None) -> builds_pb2.Build:
        """One build."""
        return self._loop.run(self._aio.get_build(build_id, timeout=timeout))

    def watch_build(
        self, build_id: str, *, offset: int = 0, timeout: float | None = None
    ) -> Iterator[builds_pb2.WatchBuildResponse]:
        """A build and its log, until it ends."""
        return self._iterate(self._aio.watch_build(build_id, offset=offset, timeout=timeout))

    def cancel_build(self, build_id: str, *, timeout: float | None = None) -> builds_pb2.Build:
        """Ends a build."""
        return self._loop.run(self._aio.cancel_build(build_id, timeout=timeout))

    def find_engine(
        self,
        source_digest: str,
        *,
        builder: str,
        builder_version: str,
        architecture: str,
        precision: str = "",
        profile: str = "",
        timeout: float | None = None,
    ) -> builds_pb2.Engine | None:
        """The engine for exactly this, or the newest where precision or profile is left open; None for a miss."""
        return self._loop.run(
            self._aio.find_engine(
                source_digest,
                builder=builder,
                builder_version=builder_version,
                architecture=architecture,
                precision=precision,
                profile=profile,
                timeout=timeout,
            )
        )

    def overrides(self, name: str = "", *, timeout: float | None = None) -> list[builds_pb2.GateOverride]:
        """Who deployed what in spite of its gate, newest first."""
        return self._loop.run(self._aio.overrides(name, timeout=timeout))

    def collect(self, *, dry_run: bool = False, timeout: float | None = None) -> storage.Collection:
        """Frees what nobody needs; see AsyncClient.collect."""
        return self._loop.run(self._aio.collect(dry_run=dry_run, timeout=timeout))

    def collections(self, *, limit: int = 0, timeout: float | None = None) -> list[storage.Collection]:
        """The collections of late, newest first."""
        return self._loop.run(self._aio.collections(limit=limit, timeout=timeout))

    def set_tenant(
        self,
        name: str,
        models: Iterable[str],
        *,
        rate: float = 0.0,
        burst: int = 0,
        concurrent: int = 0,
        timeout: float | None = None,
    ) -> tenants_pb2.Tenant:
        """Says what a caller may do; see AsyncClient.set_tenant."""
        return self._loop.run(
            self._aio.set_tenant(name, models, rate=rate, burst=burst, concurrent=concurrent, timeout=timeout)
        )

    def tenant(self, name: str, *, timeout: float | None = None) -> tenants_pb2.Tenant:
        """What is said of one caller."""
        return self._loop.run(self._aio.tenant(name, timeout=timeout))

    def tenants(self, *, page_size: int = 0, timeout: float | None = None) -> Iterator[tenants_pb2.Tenant]:
        """Tenants by name, page after page."""
        return self._iterate(self._aio.tenants(page_size=page_size, timeout=timeout))

    def delete_tenant(self, name: str, *, timeout: float | None = None) -> None:
        """Forgets what was said of a caller."""
        self._loop.run(self._aio.delete_tenant(name, timeout=timeout))

    def delete_version(self, name: str, version: int, *, timeout: float | None = None) -> None:
        """Deletes a version that nothing uses."""
        self._loop.run(self._aio.delete_version(name, version, timeout=timeout))

    def set_alias(
        self, name: str, alias: str, version: int, *, expected: int | None = None, timeout: float | None = None
    ) -> int:
        """Points an alias at a version; see AsyncClient.set_alias."""
        return self._loop.run(self._aio.set_alias(name, alias, version, expected=expected, timeout=timeout))

    def delete_alias(self, name: str, alias: str, *, expected: int | None = None, timeout: float | None = None) -> None:
        """Removes an alias."""
        self._loop.run(self._aio.delete_alias(name, alias, expected=expected, timeout=timeout))

    def deploy(
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
        """Wants a version to run; see AsyncClient.deploy."""
        return self._loop.run(
            self._aio.deploy(
                name,
                version,
                replicas=replicas,
                scaling=scaling,
                placement=placement,
                tenant=tenant,
                keep_others=keep_others,
                override_gate=override_gate,
                wait=wait,
                on_status=on_status,
                timeout=timeout,
            )
        )

    def undeploy(
        self,
        name: str,
        version: int = 0,
        *,
        wait: bool | float = False,
        on_status: OnStatus | None = None,
        timeout: float | None = None,
    ) -> None:
        """Wants a version, or the whole model, gone."""
        self._loop.run(self._aio.undeploy(name, version, wait=wait, on_status=on_status, timeout=timeout))

    def deployments(self, *, timeout: float | None = None) -> list[pb.Deployment]:
        """What is wanted, by name."""
        return self._loop.run(self._aio.deployments(timeout=timeout))

    def status(self, name: str = "", *, timeout: float | None = None) -> cluster.ClusterStatus:
        """What runs where, and why something does not."""
        return self._loop.run(self._aio.status(name, timeout=timeout))

    def watch_status(self, name: str = "", *, timeout: float | None = None) -> Iterator[cluster.ClusterStatus]:
        """The status now and after every change."""
        return self._iterate(self._aio.watch_status(name, timeout=timeout))

    def explain(
        self, name: str, version: int = 0, *, timeout: float | None = None
    ) -> list[cluster.PlacementExplanation]:
        """Why each deployed version of a model runs where it does, and what would make it fit."""
        return self._loop.run(self._aio.explain(name, version, timeout=timeout))

    def drain(
        self,
        worker: str,
        *,
        wait: bool | float = False,
        on_status: OnStatus | None = None,
        timeout: float | None = None,
    ) -> None:
        """Wants a worker empty; see AsyncClient.drain."""
        self._loop.run(self._aio.drain(worker, wait=wait, on_status=on_status, timeout=timeout))

    def undrain(self, worker: str, *, timeout: float | None = None) -> None:
        """Takes `drain` back."""
        self._loop.run(self._aio.undrain(worker, timeout=timeout))

    def wait_ready(self, name: str = "", *, timeout: float = DEFAULT_WAIT, on_status: OnStatus | None = None) -> None:
        """Waits until everything wanted is ready; see AsyncClient.wait_ready."""
        self._loop.run(self._aio.wait_ready(name, timeout=timeout, on_status=on_status))

    def _iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items, one by one; leaving early closes their source."""
        try:
            while (item := self._loop.run(_next(items))) is not _END:
                yield item  # type: ignore[misc]
        finally:
            self._loop.run(_close(items))


async def _next(items: AsyncIterator[T]) -> T | object:
    return await anext(items, _END)


async def _close(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def _off_loop(requests: Iterable[InferRequest]) -> AsyncIterator[InferRequest]:
    """Reads a caller's iterable in a worker thread: it may block, the loop may not."""
    source = iter(requests)
    while True:
        request: Any = await asyncio.to_thread(next, source, _END)
        if request is _END:
            return
        yield request
