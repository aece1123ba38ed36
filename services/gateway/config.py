"""Configuration of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from penstock.kit.config import ServiceConfig, setting

PORTS: Final = ("http_port",)
"""Ports beside that of gRPC."""


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(ServiceConfig):
    """What a gateway can be told. `port` is that of gRPC."""

    port: int = setting(8001, "port of the gRPC server; 0 takes a free one")
    http_port: int = setting(8000, "port of the REST bridge; 0 takes a free one")
    default_timeout: float = setting(60.0, "seconds for a request that brings no deadline")
    max_body_bytes: int = setting(64 << 20, "largest inference request in bytes")
    retries: int = setting(1, "other replicas to try when the first cannot answer")
    shared_memory: bool = setting(True, "take tensors in shared memory from this user's own processes on this host")
    waiting_requests: int = setting(
        4096, "requests that may wait for models to be loaded on demand; 0: none waits", low=0
    )
    waiting_requests_per_version: int = setting(1024, "the same, for one version of a model", low=0)
    access_log: float = setting(
        0.01, "share of inference requests that get a line in the log; those that fail all do; 0: none", low=0, high=1
    )
    processes: int = setting(
        1,
        "processes that serve, all on the same ports; 0: one per core that it may use; "
        "each has its part of what the service may use in total (connections, request bytes held, waiting requests)",
        low=0,
        high=256,
    )
