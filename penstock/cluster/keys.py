"""Every key that Penstock keeps in etcd, with its one writer. The same table, for people: docs/etcd.md.

Segments are model names (penstock.names), version numbers and ids of processes; none holds a slash, and none is longer
than `MAX_SEGMENT`, so that no key is longer than `MAX_KEY`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

PREFIX = "/penstock/"
DEPLOYMENTS = PREFIX + "deployments/"
TENANTS = PREFIX + "tenants/"
WORKERS = PREFIX + "workers/"
REPLICAS = PREFIX + "replicas/"
ASSIGNMENTS = PREFIX + "assignments/"
LEARNED = PREFIX + "learned/"
DRAINS = PREFIX + "drains/"
POOLS = PREFIX + "pools/"
SERVICES = PREFIX + "services/"
LEADER = PREFIX + "leader/scheduler"

MAX_SEGMENT: Final = 128
MAX_VERSION: Final = 10**18 - 1
"""As penstock.names has it."""
MAX_KEY: Final = 320
"""Bytes of the longest key there can be, and some more; etcd itself has no limit but that of a request."""

_SEGMENT = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_SEGMENT - 1}}}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Key:
    """One kind of key: how it is built, what it holds, who alone writes it, how long it lives."""

    form: str
    example: str
    record: str
    writer: str
    life: str


TABLE = (
    Key(
        DEPLOYMENTS + "{name}",
        DEPLOYMENTS + "digits",
        "DeploymentRecord",
        "registry",
        "until the model is undeployed; the registry's database is the truth and writes it again",
    ),
    Key(
        TENANTS + "{name}",
        TENANTS + "fraud-team",
        "TenantRecord",
        "registry",
        "until the tenant is deleted; the registry's database is the truth and writes it again",
    ),
    Key(WORKERS + "{id}", WORKERS + "worker-1", "WorkerRecord", "that worker", "the worker's lease"),
    Key(
        REPLICAS + "{worker}/{name}@{version}",
        REPLICAS + "worker-1/digits@3",
        "ReplicaRecord",
        "that worker",
        "the worker's lease",
    ),
    Key(
        ASSIGNMENTS + "{worker}",
        ASSIGNMENTS + "worker-1",
        "AssignmentRecord",
        "the leading scheduler, guarded by its term",
        "until changed; deleted when the worker is gone",
    ),
    Key(
        LEARNED + "{name}@{version}",
        LEARNED + "digits@3",
        "LearnedRecord",
        "the leading scheduler, guarded by its term",
        "until the version is no longer deployed",
    ),
    Key(
        DRAINS + "{worker}",
        DRAINS + "worker-1",
        "DrainRecord",
        "the scheduler that is asked",
        "until it is taken back; deleted by the leading scheduler when the worker has been gone for 10 minutes",
    ),
    Key(
        POOLS + "{name}",
        POOLS + "cpu",
        "PoolRecord",
        "the leading scheduler, guarded by its term",
        "until the pool is configured no more",
    ),
    Key(
        SERVICES + "{service}/{id}",
        SERVICES + "gateway/gateway-5e0c91a2",
        "ServiceRecord",
        "that service",
        "the service's lease",
    ),
    Key(
        LEADER,
        LEADER,
        "LeaderRecord",
        "the scheduler that leads",
        "the leader's lease; its create revision is the term",
    ),
)


def known(key: str) -> bool:
    """Whether the key has one of the forms of the table. Others are a stranger's: they are passed over."""
    return len(key) <= MAX_KEY and any(form.fullmatch(key) for form in _FORMS)


def deployment(name: str) -> str:
    """What the user wants of one model."""
    return DEPLOYMENTS + _segment(name)


def tenant(name: str) -> str:
    """What one caller may do."""
    return TENANTS + _segment(name)


def worker(worker_id: str) -> str:
    """What a worker says of itself."""
    return WORKERS + _segment(worker_id)


def replica(worker_id: str, name: str, version: int) -> str:
    """What a worker says of one replica."""
    return f"{REPLICAS}{_segment(worker_id)}/{_segment(name)}@{_version(str(version))}"


def replicas_of(worker_id: str) -> str:
    """Prefix of all replicas of one worker."""
    return f"{REPLICAS}{_segment(worker_id)}/"


def assignment(worker_id: str) -> str:
    """What a worker should run."""
    return ASSIGNMENTS + _segment(worker_id)


def learned(name: str, version: int) -> str:
    """How big a version has turned out to be."""
    return f"{LEARNED}{_segment(name)}@{version:d}"


def drain(worker_id: str) -> str:
    """The wish that a worker be empty."""
    return DRAINS + _segment(worker_id)


def pool(name: str) -> str:
    """How many workers a pool should have."""
    return POOLS + _segment(name)


def service(service_name: str, service_id: str) -> str:
    """What a gateway, registry or scheduler says of itself."""
    return f"{SERVICES}{_segment(service_name)}/{_segment(service_id)}"


def services_of(service_name: str) -> str:
    """Prefix of all processes of one service."""
    return f"{SERVICES}{_segment(service_name)}/"


def parse_deployment(key: str) -> str:
    """The model name of a deployment's key; raises ValueError for another key."""
    return _rest(key, DEPLOYMENTS)


def parse_worker(key: str) -> str:
    """The id of a worker's key; raises ValueError for another key."""
    return _rest(key, WORKERS)


def parse_replica(key: str) -> tuple[str, str, int]:
    """(worker id, model name, version) of a replica's key; raises ValueError for another key."""
    worker_id, slash, rest = key.removeprefix(REPLICAS).partition("/")
    name, at, version = rest.rpartition("@")
    if not key.startswith(REPLICAS) or not slash or not at:
        raise ValueError(f"not the key of a replica: {key!r}")
    return _segment(worker_id), _segment(name), _version(version)


def parse_assignment(key: str) -> str:
    """The worker id of an assignment's key; raises ValueError for another key."""
    return _rest(key, ASSIGNMENTS)


def parse_learned(key: str) -> tuple[str, int]:
    """(model name, version) of the key of a size; raises ValueError for another key."""
    name, at, version = key.removeprefix(LEARNED).rpartition("@")
    if not key.startswith(LEARNED) or not at:
        raise ValueError(f"not the key of a size: {key!r}")
    return _segment(name), int(version)


def parse_pool(key: str) -> str:
    """The name of a pool's key; raises ValueError for another key."""
    return _rest(key, POOLS)


def parse_service(key: str) -> tuple[str, str]:
    """(service, id) of a service's key; raises ValueError for another key."""
    name, slash, service_id = key.removeprefix(SERVICES).partition("/")
    if not key.startswith(SERVICES) or not slash:
        raise ValueError(f"not the key of a service: {key!r}")
    return _segment(name), _segment(service_id)


def _segment(text: str) -> str:
    if not _SEGMENT.fullmatch(text):
        raise ValueError(f"cannot be a part of a key: {text[:80]!r}")
    return text


def _version(text: str) -> int:
    if not _VERSION.fullmatch(text):
        raise ValueError(f"cannot be the version of a key: {text[:80]!r}")
    return int(text)


def _rest(key: str, prefix: str) -> str:
    if not key.startswith(prefix):
        raise ValueError(f"{key!r} does not begin with {prefix}")
    return _segment(key.removeprefix(prefix))


def _form(form: str) -> re.Pattern[str]:
    pattern = re.escape(form).replace(re.escape("{version}"), _VERSION.pattern)
    return re.compile(re.sub(r"\\\{\w+\\\}", lambda _: _SEGMENT.pattern, pattern))


_FORMS = tuple(_form(key.form) for key in TABLE)
