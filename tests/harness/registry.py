"""What tests publish straight into the registry's store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from penstock.v1 import manifest_pb2, models_pb2
from services.registry.blobs import BlobStore
from services.registry.collector.cache import Limits
from services.registry.collector.collector import Collector
from services.registry.collector.references import References
from services.registry.collector.rounds import Rounds
from services.registry.database import Database
from services.registry.store import NewVersion, Store

EVERYTHING = Limits()
DIGEST = "sha256:" + "ab" * 32


def new(name: str = "digits", seal: Callable[[int], str] | None = None, **more: Any) -> NewVersion:
    described = {key: more.pop(key) for key in list(more) if key in manifest_pb2.Manifest.DESCRIPTOR.fields_by_name}
    manifest = manifest_pb2.Manifest(schema="penstock/v1", name=name, format="onnx", **described)
    manifest.resources.memory_bytes = 1000
    return NewVersion(
        manifest=manifest,
        files={"model": models_pb2.Artifact(digest=DIGEST, size_bytes=2**33)},
        publisher="tester",
        seal=seal or (lambda number: f"sha256:{number:064x}"),
        **more,
    )


def versions_of(store: Store, name: str = "digits") -> list[int]:
    return [version.version for version in store.list_versions(name, 0, "")[0]]


def collector(
    database: Database, blobs: BlobStore, folder: Path, *, grace: float = 3600.0, limits: Limits = EVERYTHING
) -> Collector:
    """One that keeps its lock in that folder."""
    return Collector(References(database), blobs, lock=folder / "locks" / "collector", grace=grace, limits=limits)


def rounds(database: Database, blobs: BlobStore, folder: Path) -> Rounds:
    """Collections on request only."""
    return Rounds(collector(database, blobs, folder), References(database), interval=0)
