"""Configuration of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.kit.config import ServiceConfig, setting

from .devices import DECLARED

_WORD = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(ServiceConfig):
    """What a worker can be told."""

    port: int = setting(8031, "port of the gRPC server; 0 takes a free one")
    admin_port: int = setting(8032, "port of /metrics, /healthz and /readyz; 0 takes a free one")
    memory_bytes: int = setting(0, "memory to offer to replicas; 0 offers 60 % of the container's or machine's")
    devices: tuple[str, ...] = setting(
        (), "KIND:BYTES or KIND:BYTES:NAME each; empty: GPUs that nvidia-smi finds; none: no device", pattern=DECLARED
    )
    labels: tuple[str, ...] = setting(
        (), "KEY=VALUE each, for selectors of models; `zone` is also the failure domain", pattern=f"{_WORD}={_WORD}"
    )
    taints: tuple[str, ...] = setting((), "each keeps away every model that does not tolerate it", pattern=_WORD)
    cache_dir: str = setting("data/worker", "folder of the artifact cache; each worker needs its own")
    cache_bytes: int = setting(20 << 30, "size of the artifact cache; what is in use is kept even beyond it")
    threads: int = setting(0, "threads of a replica whose manifest names none; 0 takes half of the processors")
    load_timeout: float = setting(120.0, "seconds that an engine may take to load and warm up")
    run_timeout: float = setting(120.0, "seconds after which an engine that does not answer is restarted")
    plan_keys: str = setting("", "PEM file of the builders' public keys whose compiled plans may run here; empty: none")
    compile_plans: bool = setting(
        True, "compile plans that are found nowhere, on a worker where a TensorRT builder is installed"
    )
    compile_seconds: float = setting(1800.0, "longest time in seconds of one compile", low=1)
    compile_memory_bytes: int = setting(16 << 30, "data in bytes that one compile may hold", low=1)
    plan_cache_bytes: int = setting(20 << 30, "size of the cache of compiled plans, in cache_dir", low=0)
    python_engine: str = setting(
        "", "interpreter for models that are Python code, which may do what this user may; empty: none"
    )
    python_seconds: float = setting(30.0, "seconds that such a model may take for a batch")
    grace_seconds: float = setting(0.3, "how long a leaving replica takes requests of gateways that have not heard")
