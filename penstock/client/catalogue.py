"""The calls of the catalogue: models, their immutable versions, their aliases, their files."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from penstock import names
from penstock.client import bundle, upload
from penstock.client.connection import Connection
from penstock.client.payload import Version, version_text
from penstock.client.upload import OnProgress
from penstock.errors import InvalidArgument
from penstock.v1 import models_pb2 as pb


class CatalogueCalls:
    """What the registry answers, as messages of penstock.v1; every call may raise any class of `penstock.errors`."""

    _connection: Connection

    async def models(
        self,
        query: str = "",
        tags: Mapping[str, str] | None = None,
        *,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[pb.Model]:
        """Models by name, page after page.

        query: words that must occur in name, description, author, framework or tags; tags: must be equal; page_size:
        models per call, 0 for the server's choice; timeout: seconds per call.
        """
        token = ""
        while True:
            request = pb.ListModelsRequest(query=query, tags=tags, page_size=page_size, page_token=token)
            page = await self._connection.read_only(self._connection.stubs.models.ListModels, request, timeout)
            for model in page.models:
                yield model
            token = page.next_page_token
            if not token:
                return

    async def model(self, name: str, *, timeout: float | None = None) -> pb.Model:
        """One model with its aliases; raises NotFound."""
        request = pb.GetModelRequest(name=names.model(name))
        answer = await self._connection.read_only(self._connection.stubs.models.GetModel, request, timeout)
        return answer.model

    async def versions(
        self, name: str, *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncGenerator[pb.ModelVersion]:
        """Versions of a model, newest first, page after page; raises NotFound."""
        names.model(name)
        token = ""
        while True:
            request = pb.ListVersionsRequest(name=name, page_size=page_size, page_token=token)
            page = await self._connection.read_only(self._connection.stubs.models.ListVersions, request, timeout)
            for version in page.versions:
                yield version
            token = page.next_page_token
            if not token:
                return

    async def version(self, name: str, version: Version = None, *, timeout: float | None = None) -> pb.ModelVersion:
        """One version by number or alias, the newest when none is given; raises NotFound."""
        request = pb.GetVersionRequest(name=names.model(name), version=version_text(version))
        answer = await self._connection.read_only(self._connection.stubs.models.GetVersion, request, timeout)
        return answer.version

    async def publish(
        self,
        path: str | Path,
        *,
        version: int = 0,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> pb.ModelVersion:
        """Uploads a model's files and publishes its next version, or finds the version that is just this already.

        Args:
            path: a manifest (model.yaml) or the folder that holds one. YAML needs PyYAML (extra `cli`); model.json
                needs nothing. Files that the registry has already are not sent again.
            version: number to take; 0 for the next.
            progress: told of every step of every file, from the client's event loop.
            timeout: seconds of the final call; uploads have no deadline but end when the server falls silent.

        Raises:
            InvalidManifest, with the field; AlreadyExists: the version number is taken; Unavailable: the upload broke
            five times in a row without getting further.
        """
        described = bundle.read(path)
        digests = {}
        for role, file in described.files.items():
            artifact = await self.upload(file, progress=progress)
            digests[role] = artifact.digest
        request = pb.PublishVersionRequest(manifest=described.text, digests=digests, version=version)
        # The same content has the same key, so publishing it again, now or next week, is the same version.
        request.request_key = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        answer = await self._connection.read_only(self._connection.stubs.models.PublishVersion, request, timeout)
        return answer.version

    async def upload(self, path: str | Path, *, progress: OnProgress | None = None) -> pb.Artifact:
        """Uploads one file, resuming where an earlier upload ended, and returns its digest and size.

        Raises InvalidArgument for a file that cannot be read or changes meanwhile.
        """
        file = Path(path)
        try:
            artifact = await upload.describe(file, progress)
            await upload.send(self._connection, file, artifact, progress)
        except OSError as error:
            raise InvalidArgument(f"{file}: {error.strerror or 'cannot be read'}") from None
        return artifact

    async def delete_version(self, name: str, version: int, *, timeout: float | None = None) -> None:
        """Deletes a version; raises InUse while it is deployed or an alias names it, NotFound."""
        request = pb.DeleteVersionRequest(name=names.model(name), version=version)
        await self._connection.call(self._connection.stubs.models.DeleteVersion, request, timeout=timeout)

    async def set_alias(
        self, name: str, alias: str, version: int, *, expected: int | None = None, timeout: float | None = None
    ) -> int:
        """Points an alias at a version and returns where it pointed before, 0 for nowhere.

        expected: move it only if it points there now (0: only if it does not exist); raises Conflict otherwise.
        """
        request = pb.SetAliasRequest(
            name=names.model(name), alias=names.alias(alias), version=version, expected_version=expected
        )
        answer = await self._connection.call(self._connection.stubs.models.SetAlias, request, timeout=timeout)
        return answer.previous_version

    async def delete_alias(
        self, name: str, alias: str, *, expected: int | None = None, timeout: float | None = None
    ) -> None:
        """Removes an alias; `expected` as in set_alias. Raises NotFound, Conflict."""
        request = pb.DeleteAliasRequest(name=names.model(name), alias=names.alias(alias), expected_version=expected)
        await self._connection.call(self._connection.stubs.models.DeleteAlias, request, timeout=timeout)
