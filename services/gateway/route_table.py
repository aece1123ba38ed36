"""Where a request for a model and a version goes: an immutable table built from records. Pure.

A model's routes are computed once when a record changes; a request costs two dictionary look-ups. Where nothing can
serve, the table holds why, in words that are true for the caller: loading, failed with the reason, not placed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from penstock import names
from penstock.errors import InvalidArgument, NotFound, Unavailable
from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord, WantedVersion
from penstock.v1 import cluster_pb2 as pb

LOADING = frozenset({pb.REPLICA_STATE_ASSIGNED, pb.REPLICA_STATE_PULLING, pb.REPLICA_STATE_LOADING})
RETRY_SECONDS = 1.0
"""What a caller is told to wait when a version is on its way."""


@dataclass(frozen=True, slots=True)
class Replica:
    """worker: id of the worker; address: host:port of its inference server; unix_socket: path of its socket on its own
    host, empty for none."""

    worker: str
    address: str
    unix_socket: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """At least one READY replica of one version."""

    model: str
    version: int
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class VersionView:
    """One wanted version. state: READY, LOADING, UNLOADING or UNAVAILABLE (the protocol's words); reason: why it is
    not READY, empty otherwise; failed: it could not be loaded anywhere and nothing is under way; on_demand: it may have
    no replica while nobody calls, and gets one when somebody does; retiring: it serves until the default does."""

    version: int
    state: str
    reason: str
    replicas: tuple[Replica, ...] = ()
    failed: bool = False
    retry_after: float | None = None
    on_demand: bool = False
    retiring: bool = False


@dataclass(frozen=True, slots=True)
class ModelView:
    """One deployed model: what is wanted, what is there, and the answer to each version text that a caller may send."""

    name: str
    default_version: int
    versions: Mapping[int, VersionView]
    aliases: Mapping[str, int]
    routes: Mapping[str, Route]


class RouteTable:
    """All deployed models at one moment. Never changes: `with_models` makes the next table.

    addresses: of every replica; unix_sockets: the path at each address, empty for none.
    """

    __slots__ = ("addresses", "models", "unix_sockets")

    def __init__(self, models: Mapping[str, ModelView] = MappingProxyType({})) -> None:
        self.models = models
        self.unix_sockets: Mapping[str, str] = {
            replica.address: replica.unix_socket
            for model in models.values()
            for route in model.routes.values()
            for replica in route.replicas
        }
        self.addresses = frozenset(self.unix_sockets)

    def with_models(self, changed: Mapping[str, ModelView | None]) -> RouteTable:
        """The table with those models replaced; None removes one."""
        models = {name: view for name, view in self.models.items() if name not in changed}
        models.update({name: view for name, view in changed.items() if view is not None})
        return RouteTable(models)

    def resolve(self, model: str, version: str) -> Route:
        """Where to send a request.

        model: name; version: a positive integer, an alias, or empty. Empty means the deployment's default version if
        it has a READY replica, else the highest READY one; in place of a default that is loaded on demand only one that
        retires. Raises InvalidArgument (no model name, a version that is neither), NotFound (not deployed), Unavailable
        (deployed, nothing READY; the message says why).
        """
        view = self.models.get(model)
        if view is None:
            if not model:
                raise InvalidArgument("the request names no model", field="model_name")
            raise NotFound(f"model {shown(model)} is not deployed", field="model_name")
        route = view.routes.get(version)
        return route if route is not None else self._route_or_reason(view, version)

    def _route_or_reason(self, view: ModelView, version: str) -> Route:
        """The rare texts: `007`, what is not there, what is not ready."""
        wanted = wanted_version(view, version)
        route = view.routes.get(str(wanted))
        if route is not None:
            return route
        raise unavailable(view.name, view.versions[wanted])

    def replica_at(self, address: str, model: str, version: int) -> Replica | None:
        """The READY replica of a version at an address."""
        view = self.models.get(model)
        number = view.versions.get(version) if view is not None else None
        there = number.replicas if number is not None else ()
        return next((replica for replica in there if replica.address == address), None)

    def cold(self, model: str, version: str) -> VersionView:
        """The version for which `resolve` has just raised Unavailable."""
        view = self.models[model]
        return view.versions[wanted_version(view, version)]


def unavailable(model: str, version: VersionView) -> Unavailable:
    """Why a version that is deployed cannot serve."""
    return Unavailable(
        f"version {version.version} of model '{model}' {version.reason}", retry_after=version.retry_after
    )


def wanted_version(view: ModelView, version: str) -> int:
    """The deployed version that a text names, READY or not; raises InvalidArgument or NotFound."""
    if not version:
        return view.default_version
    asked = names.version_or_alias(version, field="model_version")
    if isinstance(asked, str):
        number = view.aliases.get(asked)
        if number is None or number not in view.versions:
            # The protocol's code for a version that is no integer (docs/protocol.md).
            raise InvalidArgument(
                f"model_version: '{asked}' is neither a positive integer nor an alias of a deployed version of model "
                f"'{view.name}'",
                field="model_version",
            )
        return number
    if asked not in view.versions:
        listed = ", ".join(str(number) for number in sorted(view.versions)[:20])
        raise NotFound(
            f"version {asked} of model '{view.name}' is not deployed; deployed: {listed}", field="model_version"
        )
    return asked


def view_of(deployment: DeploymentRecord, replicas: Iterable[ReplicaRecord]) -> ModelView | None:
    """What one deployment and all replica records of its model amount to; None when no version is wanted."""
    by_version: dict[int, list[ReplicaRecord]] = {wanted.version: [] for wanted in deployment.versions}
    if not by_version:
        return None
    for record in replicas:
        if record.version in by_version:
            by_version[record.version].append(record)
    versions = {wanted.version: _version_view(wanted, by_version[wanted.version]) for wanted in deployment.versions}
    aliases = {alias: number for alias, number in deployment.aliases.items() if number in versions}
    default = deployment.default_version if deployment.default_version in versions else max(versions)
    return ModelView(
        name=deployment.name,
        default_version=default,
        versions=MappingProxyType(versions),
        aliases=MappingProxyType(aliases),
        routes=MappingProxyType(_routes(deployment.name, default, versions, aliases)),
    )


def shown(text: str) -> str:
    """A caller's text for an error message: quoted, cut, control characters escaped."""
    return repr(text[:80] + ("…" if len(text) > 80 else ""))


def _routes(
    name: str, default: int, versions: Mapping[int, VersionView], aliases: Mapping[str, int]
) -> dict[str, Route]:
    ready = {number: Route(name, number, view.replicas) for number, view in versions.items() if view.replicas}
    routes = {str(number): route for number, route in ready.items()}
    routes.update({alias: ready[number] for alias, number in aliases.items() if number in ready})
    instead = [number for number in ready if versions[number].retiring or not versions[default].on_demand]
    if default in ready or instead:
        routes[""] = ready.get(default) or ready[max(instead)]
    return routes


def _version_view(wanted: WantedVersion, records: list[ReplicaRecord]) -> VersionView:
    view = _loaded_view(wanted.version, records)
    on_demand = wanted.HasField("scaling") and wanted.scaling.min_replicas == 0
    if on_demand and not records:
        # Nothing is known of when: the first request decides.
        view = replace(view, reason="is not loaded; a request has it loaded", retry_after=None)
    return replace(view, on_demand=on_demand, retiring=wanted.retiring)


def _loaded_view(number: int, records: list[ReplicaRecord]) -> VersionView:
    ready = tuple(
        Replica(record.worker, record.address, record.unix_socket)
        for record in sorted(records, key=lambda record: record.worker)
        if record.state == pb.REPLICA_STATE_READY
    )
    if ready:
        return VersionView(number, "READY", "", ready)
    failures = [record for record in records if record.state == pb.REPLICA_STATE_FAILED]
    reason = next((record.reason for record in failures if record.reason), "")
    loading = sum(record.state in LOADING for record in records)
    if loading:
        told = f"; elsewhere it failed: {reason}" if reason else ""
        where = "1 replica" if loading == 1 else f"{loading} replicas"
        return VersionView(number, "LOADING", f"is loading ({where} on the way{told})", retry_after=RETRY_SECONDS)
    if failures:
        pause = min((float(record.retry_seconds) for record in failures if record.retry_seconds > 0), default=None)
        return VersionView(
            number,
            "UNAVAILABLE",
            f"could not be loaded: {reason or 'the worker gave no reason'}",
            failed=True,
            retry_after=pause,
        )
    if records:
        return VersionView(number, "UNLOADING", "is being unloaded where it ran", retry_after=RETRY_SECONDS)
    return VersionView(number, "UNAVAILABLE", "is not placed on a worker yet", retry_after=RETRY_SECONDS)
