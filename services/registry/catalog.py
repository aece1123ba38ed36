"""The rules, in order: what must hold before something is published, moved, deployed or deleted.

A publish: the manifest is sound → every file is here and looks like its format → memory is known → in one transaction
the version takes its number and its PublishedVersion becomes an artifact. `changed` is called after every write that
the cluster should hear of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from penstock import names
from penstock.errors import InvalidArgument, InvalidManifest, NotFound
from penstock.internal.v1 import records_pb2
from penstock.sources import CONVERTING
from penstock.v1 import manifest_pb2, models_pb2

from . import formats, manifest, sources
from .blobs import BlobStore
from .build.overrides import NONE, Override
from .deployment_store import DeploymentStore, message
from .deployments import Wanted
from .store import NewVersion, Store, build_inputs
from .threads import Threads

MEMORY_BESIDE_FILES = 64 << 20
"""Bytes that a replica is taken to need beside twice its files when the manifest does not say."""


class Catalog:
    """The registry's decisions; arguments are checked names and numbers (rpc.py), answers are messages."""

    def __init__(
        self,
        store: Store,
        deployments: DeploymentStore,
        blobs: BlobStore,
        threads: Threads,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._deployments = deployments
        self._blobs = blobs
        self._threads = threads
        self._changed = changed

    async def publish(self, request: models_pb2.PublishVersionRequest, publisher: str) -> models_pb2.ModelVersion:
        """Publishes; raises InvalidManifest, InvalidArgument, NotFound, AlreadyExists, Conflict."""
        return await self._threads.run(self._publish, request, publisher)

    async def publish_built(
        self, described: manifest_pb2.Manifest, digests: Mapping[str, str], *, publisher: str, request_key: str
    ) -> models_pb2.ModelVersion:
        """Publishes what a job made, under a manifest that was derived from a checked one; raises as `publish`."""
        return await self._threads.run(self._admit, described, digests, publisher, 0, request_key, request_key)

    async def get(self, name: str, version: int | str | None) -> models_pb2.ModelVersion:
        return await self._threads.run(self._store.get, name, version)

    async def list_versions(self, name: str, size: int, token: str) -> tuple[list[models_pb2.ModelVersion], str]:
        return await self._threads.run(self._store.list_versions, name, size, token)

    async def get_model(self, name: str) -> models_pb2.Model:
        return await self._threads.run(self._store.get_model, name)

    async def list_models(
        self, query: str, tags: Mapping[str, str], size: int, token: str
    ) -> tuple[list[models_pb2.Model], str]:
        return await self._threads.run(self._store.list_models, query, tags, size, token)

    async def delete(self, name: str, number: int) -> None:
        await self._threads.run(self._store.delete, name, number)

    async def set_alias(self, name: str, alias: str, number: int, expected: int | None) -> int:
        try:
            return await self._threads.run(self._store.set_alias, name, alias, number, expected)
        finally:
            self._changed()

    async def delete_alias(self, name: str, alias: str, expected: int | None) -> None:
        try:
            await self._threads.run(self._store.delete_alias, name, alias, expected)
        finally:
            self._changed()

    async def deploy(
        self,
        name: str,
        version: int | str | None,
        wanted: Wanted | None,
        *,
        keep_others: bool,
        override: Override = NONE,
    ) -> models_pb2.Deployment:
        # `finally`: a caller that leaves may leave after the transaction.
        try:
            return await self._threads.run(
                self._deployments.deploy, name, version, wanted, keep_others=keep_others, override=override
            )
        finally:
            self._changed()

    async def undeploy(self, name: str, number: int) -> None:
        try:
            await self._threads.run(self._deployments.undeploy, name, number)
        finally:
            self._changed()

    async def deployments(self) -> list[models_pb2.Deployment]:
        deployed = await self._threads.run(self._deployments.read_all)
        return [message(one) for one in deployed.values()]

    # --- a publish, step by step; blocking ----------------------------------------------------------------------------

    def _publish(self, request: models_pb2.PublishVersionRequest, publisher: str) -> models_pb2.ModelVersion:
        described = manifest.parse(request.manifest)
        if request.name and request.name != described.name:
            raise InvalidManifest(
                f"name: the manifest says {described.name!r}, the request {request.name[:64]!a}", field="name"
            )
        return self._admit(
            described, request.digests, publisher, request.version, request.request_key, _fingerprint(request)
        )

    def _admit(
        self,
        described: manifest_pb2.Manifest,
        digests: Mapping[str, str],
        publisher: str,
        number: int,
        request_key: str,
        fingerprint: str,
    ) -> models_pb2.ModelVersion:
        files = self._files(described, digests)
        self._check(described.format, files)
        for digest in build_inputs(described):
            # One that is missing is the build's failure, not the publication's.
            with suppress(NotFound):
                self._blobs.claim(digest)
        if not described.resources.memory_bytes:
            described.resources.memory_bytes = memory_estimate(file.size_bytes for file in files.values())
        return self._store.publish(
            NewVersion(
                manifest=described,
                files=files,
                publisher=publisher,
                seal=lambda number: self._blobs.keep(sealed(described, files, number)),
                number=number,
                request_key=request_key,
                fingerprint=fingerprint,
            )
        )

    def _check(self, format: str, files: Mapping[str, models_pb2.Artifact]) -> None:
        """Raises InvalidArgument for a file that does not look like what its role and the format say."""
        if format not in CONVERTING:
            model = files["model"]
            formats.check(format, model.size_bytes, partial(self._blobs.peek, model.digest))
            return
        for role, file in files.items():
            sources.check(format, role, file.size_bytes, partial(self._blobs.peek, file.digest))

    def _files(self, described: manifest_pb2.Manifest, digests: Mapping[str, str]) -> dict[str, models_pb2.Artifact]:
        """The uploaded file of every role; raises InvalidArgument or NotFound with the role."""
        for role in sorted(digests):
            if role not in described.files:
                shown = ascii(role[:64])
                raise InvalidArgument(f"digests: the manifest's `files` have no role {shown}", field="digests")
        files = {}
        for role in sorted(described.files):
            field = f"digests.{role}"
            if role not in digests:
                raise InvalidArgument(f"{field}: is missing; upload the file and send its digest", field=field)
            digest = names.digest(digests[role], field)
            try:
                size = self._blobs.claim(digest)
            except NotFound as error:
                raise NotFound(f"{field}: {error.message}", field=field) from None
            files[role] = models_pb2.Artifact(digest=digest, size_bytes=size)
        return files


def memory_estimate(sizes: Iterable[int]) -> int:
    """Bytes that placement reserves for files of these sizes: twice their sum and 64 MiB."""
    return 2 * sum(sizes) + MEMORY_BESIDE_FILES


def sealed(described: manifest_pb2.Manifest, files: Mapping[str, models_pb2.Artifact], number: int) -> bytes:
    """The bytes of a PublishedVersion; equal content gives equal bytes, so their digest names the version."""
    published = records_pb2.PublishedVersion(
        name=described.name,
        version=number,
        manifest=described.SerializeToString(deterministic=True),
        files={
            role: records_pb2.PublishedFile(digest=file.digest, size_bytes=file.size_bytes)
            for role, file in files.items()
        },
    )
    return published.SerializeToString(deterministic=True)


def _fingerprint(request: models_pb2.PublishVersionRequest) -> str:
    asked = json.dumps([request.manifest, sorted(request.digests.items()), request.version])
    return hashlib.sha256(asked.encode()).hexdigest()
