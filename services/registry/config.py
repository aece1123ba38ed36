"""Configuration of the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from penstock.kit.config import ServiceConfig, setting


@dataclass(frozen=True, kw_only=True)
class RegistryConfig(ServiceConfig):
    """What a registry can be told."""

    port: int = setting(8011, "port of the gRPC server; 0 takes a free one")
    admin_port: int = setting(8012, "port of /metrics, /healthz and /readyz; 0 takes a free one")
    data_dir: str = setting("data/registry", "folder of the artifacts and of the SQLite file")
    database_url: str = setting("", "postgresql://user@host/name or sqlite:///file; empty: registry.db in data_dir")
    max_artifact_bytes: int = setting(1 << 40, "largest artifact in bytes")
    spare_bytes: int = setting(64 << 20, "bytes that uploads leave free on the disk")
    partial_hours: float = setting(24.0, "hours after which an upload that nobody goes on with is removed")
    upload_idle_seconds: float = setting(60.0, "seconds that an upload may pause before its stream is ended")
    collect_hours: float = setting(6.0, "hours between two collections of what nobody needs; 0: only on request")
    collect_grace_hours: float = setting(24.0, "hours that an artifact which nothing names stays after its upload")
    build_cache_bytes: int = setting(64 << 30, "bytes of results and plans of builds that are kept; 0: any number")
    build_cache_days: float = setting(90.0, "days after which a result or plan that nobody uses goes; 0: never")
    project_seconds: float = setting(5.0, "seconds between two looks whether etcd holds what the database says")
    builds: int = setting(1, "builds that run here at the same time; 0 leaves them to another registry")
    builds_waiting: int = setting(100, "builds that may wait for their turn")
    build_python: str = setting("", "Python that runs the steps of builds; empty: the registry's own")
    build_threads: int = setting(1, "threads of a library in a step")
    build_seconds: float = setting(3600.0, "longest time in seconds, and processor time, of one step")
    build_memory_bytes: int = setting(16 << 30, "address space in bytes of one step")
    build_disk_bytes: int = setting(64 << 30, "bytes that one step may write")
    build_unconfined: bool = setting(
        False, "run steps even where the kernel gives them no namespaces, so with the network open to them"
    )

    def folder(self) -> Path:
        """The folder, absolute."""
        return Path(self.data_dir).resolve()

    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite:///{self.folder() / 'registry.db'}"
