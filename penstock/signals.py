"""Names of every signal that Penstock sends: metrics and spans, declared before use. docs/telemetry.md lists them, and
a test keeps the two equal. Names are an API: dashboards and alerts stand on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds; buckets of request latencies."""
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Rows; buckets of batch sizes."""
LONG: Final = (0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds; buckets of steps of builds."""


Merge = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Counters are named without `_total`, which Prometheus appends.

    gauge_merge: what becomes of a gauge where several processes are one service. A thing that each of them has a part
    of is summed; a thing that all see alike is said once, by the one that has most of it (or least, where that is the
    one to worry about). None: never several processes.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    service: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = field(default=FAST)
    gauge_merge: Merge | None = None

    @property
    def merge(self) -> Merge | None:
        """How the values of several processes become one; what counts is always summed."""
        return self.gauge_merge if self.kind == "gauge" else "sum"


# Every service.
RPCS: Final = Metric("penstock_rpcs", "counter", "every", "Calls of the control plane answered", ("method", "code"))
CONNECTIONS: Final = Metric(
    "penstock_connections",
    "gauge",
    "every",
    "Connections to the port of inference and to the unix socket beside it (gateway, worker); kind: tcp, tls, unix",
    ("kind",),
    gauge_merge="sum",
)
READY: Final = Metric("penstock_ready", "gauge", "every", "1 while the service is ready", gauge_merge="max")
CERTIFICATE_EXPIRES: Final = Metric(
    "penstock_certificate_expires_timestamp_seconds",
    "gauge",
    "every",
    "When the certificate that the process shows ends, in seconds since the epoch; 0 without one",
    gauge_merge="min",
)

# Supervisor: a service of several processes.
PROCESSES: Final = Metric(
    "penstock_processes", "gauge", "every", "Processes that are ready, of a service of several", gauge_merge="sum"
)
PROCESS_RESTARTS: Final = Metric(
    "penstock_process_restarts", "counter", "every", "Processes started again because they had ended unasked"
)
ETCD_FAILURES: Final = Metric(
    "penstock_etcd_failures",
    "counter",
    "every",
    "Calls to etcd that failed: away (no answer, no leader), no_space (NOSPACE alarm), too_large, refused",
    ("reason",),
)
ETCD_REWINDS: Final = Metric(
    "penstock_etcd_rewinds",
    "counter",
    "every",
    "Times that a watched prefix turned out to be of an older or another store than before: restored, or emptied",
)
ETCD_CERTIFICATE_EXPIRES: Final = Metric(
    "penstock_etcd_certificate_expires_timestamp_seconds",
    "gauge",
    "every",
    "When the certificate that the process shows to etcd ends, in seconds since the epoch; 0 without one",
    gauge_merge="min",
)

# Gateway.
GATEWAY_REQUESTS: Final = Metric(
    "penstock_gateway_requests",
    "counter",
    "gateway",
    "Inference requests ended, by model (empty where none is deployed under that name) and code",
    ("model", "code"),
)
GATEWAY_SECONDS: Final = Metric(
    "penstock_gateway_request_seconds", "histogram", "gateway", "Time from request to answer at the gateway", ("model",)
)
GATEWAY_REFUSED: Final = Metric(
    "penstock_gateway_refused",
    "counter",
    "gateway",
    "Requests that their callers' tenants do not allow: a model that is not theirs (model), too many a second (rate), "
    "too many under way (concurrent)",
    ("reason",),
)
GATEWAY_RETRIES: Final = Metric(
    "penstock_gateway_retries",
    "counter",
    "gateway",
    "Requests tried on a second replica, by what the first said",
    ("code",),
)
GATEWAY_EJECTIONS: Final = Metric(
    "penstock_gateway_ejections",
    "counter",
    "gateway",
    "Times that a worker whose connection failed (lost), or a replica that answered nothing (silent), late (slow) or "
    "with failures of its own (failing) while others answered, was avoided",
    ("reason",),
)
GATEWAY_IN_FLIGHT: Final = Metric(
    "penstock_gateway_in_flight", "gauge", "gateway", "Requests that wait for a worker", gauge_merge="sum"
)
GATEWAY_WORKERS: Final = Metric(
    "penstock_gateway_workers", "gauge", "gateway", "Workers connected to", gauge_merge="max"
)
GATEWAY_MODELS: Final = Metric(
    "penstock_gateway_models", "gauge", "gateway", "Deployed models in the routing table", gauge_merge="max"
)
GATEWAY_HELD: Final = Metric(
    "penstock_gateway_held_replicas",
    "gauge",
    "gateway",
    "Replicas served from though the store no longer has them",
    gauge_merge="max",
)
GATEWAY_WAITING: Final = Metric(
    "penstock_gateway_waiting",
    "gauge",
    "gateway",
    "Requests that wait for a version to be loaded",
    gauge_merge="sum",
)
GATEWAY_WAITED: Final = Metric(
    "penstock_gateway_waited_seconds",
    "histogram",
    "gateway",
    "Time that requests waited for a version to be loaded, by how that ended: went (it was), late (their deadline came "
    "first), left (cancelled), full (the waiting room was)",
    ("end",),
)

# Worker. `code` is OK or a code of docs/errors.md.
WORKER_REQUESTS: Final = Metric(
    "penstock_worker_requests", "counter", "worker", "Inference requests ended", ("model", "version", "code")
)
WORKER_QUEUE_SECONDS: Final = Metric(
    "penstock_worker_queue_seconds",
    "histogram",
    "worker",
    "Time that an answered request waited for its batch",
    ("model", "version"),
)
WORKER_BATCH_SECONDS: Final = Metric(
    "penstock_worker_batch_seconds",
    "histogram",
    "worker",
    "Time that a batch took, from leaving the queue until its engine had answered",
    ("model", "version"),
)
WORKER_BATCH_ROWS: Final = Metric(
    "penstock_worker_batch_rows", "histogram", "worker", "Items in a batch", ("model", "version"), buckets=SIZES
)
WORKER_QUEUE_DEPTH: Final = Metric(
    "penstock_worker_queue_depth", "gauge", "worker", "Requests that wait for a batch", ("model", "version")
)
WORKER_REPLICAS: Final = Metric("penstock_worker_replicas", "gauge", "worker", "Replicas by state", ("state",))
WORKER_ENGINE_FAILURES: Final = Metric(
    "penstock_worker_engine_failures",
    "counter",
    "worker",
    "Times that a replica could not load or its engine's process ended",
    ("model", "version"),
)
WORKER_MEMORY_BYTES: Final = Metric(
    "penstock_worker_memory_bytes", "gauge", "worker", "Memory that the worker offers to replicas"
)
WORKER_RESERVED_BYTES: Final = Metric(
    "penstock_worker_reserved_bytes", "gauge", "worker", "Memory that replicas have reserved"
)
WORKER_DEVICE_BYTES: Final = Metric(
    "penstock_worker_device_bytes", "gauge", "worker", "Memory that a device offers to replicas", ("device",)
)
WORKER_DEVICE_RESERVED_BYTES: Final = Metric(
    "penstock_worker_device_reserved_bytes", "gauge", "worker", "Memory of a device that is reserved", ("device",)
)
WORKER_DEVICE_LOSSES: Final = Metric(
    "penstock_worker_device_losses", "counter", "worker", "Engines that have lost their device", ("device",)
)
WORKER_DEVICE_CORDONED: Final = Metric(
    "penstock_worker_device_cordoned",
    "gauge",
    "worker",
    "1 when a device is no longer used because engines lose it again and again",
    ("device",),
)
WORKER_PLANS: Final = Metric(
    "penstock_worker_plans",
    "counter",
    "worker",
    "Plans that a version did not bring, by where they came from: cache, registry, compiled; or failed",
    ("source",),
)
WORKER_DOWNLOADED_BYTES: Final = Metric(
    "penstock_worker_downloaded_bytes", "counter", "worker", "Bytes of artifacts pulled from a registry"
)
WORKER_CACHE_BYTES: Final = Metric(
    "penstock_worker_cache_bytes", "gauge", "worker", "Bytes of artifacts in the worker's cache"
)

# Registry.
REGISTRY_UPLOADS: Final = Metric(
    "penstock_registry_uploads",
    "counter",
    "registry",
    "Uploads ended: stored, existed, refused or broken",
    ("outcome",),
)
REGISTRY_UPLOADED_BYTES: Final = Metric(
    "penstock_registry_uploaded_bytes", "counter", "registry", "Bytes of artifacts received"
)
REGISTRY_DOWNLOADED_BYTES: Final = Metric(
    "penstock_registry_downloaded_bytes", "counter", "registry", "Bytes of artifacts sent"
)
REGISTRY_SWEPT_UPLOADS: Final = Metric(
    "penstock_registry_swept_uploads", "counter", "registry", "Partial uploads removed because nobody went on with them"
)
REGISTRY_PROJECTION_AGE: Final = Metric(
    "penstock_registry_projection_age_seconds",
    "gauge",
    "registry",
    "Seconds since etcd surely held the deployments that the database holds",
)
REGISTRY_FREE_BYTES: Final = Metric(
    "penstock_registry_free_bytes", "gauge", "registry", "Free bytes on the disk of the artifacts"
)
REGISTRY_FREED_ARTIFACTS: Final = Metric(
    "penstock_registry_freed_artifacts", "counter", "registry", "Artifacts removed because nothing named them"
)
REGISTRY_FREED_BYTES: Final = Metric("penstock_registry_freed_bytes", "counter", "registry", "Bytes of those artifacts")
REGISTRY_KEPT_BYTES: Final = Metric(
    "penstock_registry_kept_bytes",
    "gauge",
    "registry",
    "Bytes of artifacts that the last collection here left, by what needs them: versions, builds, cache, new",
    ("why",),
)
REGISTRY_BUILDS: Final = Metric(
    "penstock_registry_builds",
    "gauge",
    "registry",
    "Builds now, as the registry that runs them sees it; state: waiting, running",
    ("state",),
)
REGISTRY_BUILDS_ENDED: Final = Metric(
    "penstock_registry_builds_ended",
    "counter",
    "registry",
    "Builds that ended: succeeded, gate_failed (done, and held back by its gate), failed, cancelled",
    ("outcome",),
)
REGISTRY_BUILD_STEPS: Final = Metric(
    "penstock_registry_build_steps",
    "counter",
    "registry",
    "Steps that ended: made, found (its result was in the cache), failed",
    ("step", "outcome"),
)
REGISTRY_BUILD_STEP_SECONDS: Final = Metric(
    "penstock_registry_build_step_seconds",
    "histogram",
    "registry",
    "Time that a step took whose result was made",
    ("step",),
    LONG,
)
REGISTRY_BUILD_CACHE_BYTES: Final = Metric(
    "penstock_registry_build_cache_bytes",
    "gauge",
    "registry",
    "Bytes of the files in the cache of builds, as the registry that runs them last saw; kind: results, plans",
    ("kind",),
)

# Scheduler.
SCHEDULER_LEADING: Final = Metric("penstock_scheduler_leading", "gauge", "scheduler", "1 while this scheduler leads")
SCHEDULER_TERM: Final = Metric("penstock_scheduler_term", "gauge", "scheduler", "Term of this leader, 0 for another")
SCHEDULER_PLAN_SECONDS: Final = Metric(
    "penstock_scheduler_plan_seconds", "histogram", "scheduler", "Time that one plan took"
)
SCHEDULER_ASSIGNMENT_WRITES: Final = Metric(
    "penstock_scheduler_assignment_writes", "counter", "scheduler", "Assignments written or deleted"
)
SCHEDULER_MISSING_REPLICAS: Final = Metric(
    "penstock_scheduler_missing_replicas", "gauge", "scheduler", "Replicas wanted that no worker has room for"
)
SCHEDULER_WORKERS: Final = Metric("penstock_scheduler_workers", "gauge", "scheduler", "Live workers")
SCHEDULER_HELD_WORKERS: Final = Metric(
    "penstock_scheduler_held_workers", "gauge", "scheduler", "Workers gone whose assignments stay for now"
)
SCHEDULER_REPORTERS: Final = Metric(
    "penstock_scheduler_reporters", "gauge", "scheduler", "Processes that have told it of their demand not long ago"
)
SCHEDULER_EVICTIONS: Final = Metric(
    "penstock_scheduler_evictions", "counter", "scheduler", "Versions that nobody used and that made room for others"
)
SCHEDULER_ETCD_ALARM: Final = Metric(
    "penstock_scheduler_etcd_alarm",
    "gauge",
    "scheduler",
    "1 while etcd has raised this alarm: NOSPACE (it refuses writes until there is room) or CORRUPT",
    ("alarm",),
)

SCHEDULER_POOL_WANTED: Final = Metric(
    "penstock_scheduler_pool_workers_wanted",
    "gauge",
    "scheduler",
    "Workers that a pool should have; only the leading scheduler has this, so that its absence is not zero",
    ("pool",),
)
SCHEDULER_POOL_WORKERS: Final = Metric(
    "penstock_scheduler_pool_workers",
    "gauge",
    "scheduler",
    "Live workers of a pool that do not leave; only the leading scheduler has this",
    ("pool",),
)
SCHEDULER_POOL_FAILURES: Final = Metric(
    "penstock_scheduler_pool_failures",
    "counter",
    "scheduler",
    "Times that whoever starts and stops a pool's workers failed, or did not answer in time",
    ("pool",),
)

# Spans.
GATEWAY_INFER_SPAN: Final = "gateway.infer"
WORKER_INFER_SPAN: Final = "worker.infer"
ENGINE_BATCH_SPAN: Final = "engine.batch"

SPANS: Final[dict[str, str]] = {
    GATEWAY_INFER_SPAN: "A request at the gateway: resolving, choosing, forwarding, the retry",
    WORKER_INFER_SPAN: "A request at a worker: waiting in the queue and in the batch; child of the gateway's span",
    ENGINE_BATCH_SPAN: "One run of an engine; linked to the spans of all requests in it",
}
"""Every span's name and what it covers."""
