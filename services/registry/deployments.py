"""What a deployment becomes when somebody deploys, undeploys, or when its new version has become ready (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Wanted:
    """One wanted version.

    replicas: the least of them where `scaling` moves their number. retiring: serves only until the default version is
    ready. scaling, placement: serialised messages of penstock.v1, None where nobody said. tenant: whose reserved
    capacity it may use, empty for nobody's.
    """

    replicas: int
    retiring: bool = False
    scaling: bytes | None = None
    placement: bytes | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted of one model: versions by number, and the one that serves a request that names none."""

    versions: Mapping[int, Wanted] = field(default_factory=dict)
    default: int = 0


NOTHING = Plan()


def deploy(plan: Plan, version: int, wanted: Wanted | None, *, keep_others: bool) -> Plan:
    """Wants a version, in place of what was wanted of it. Unless others are kept, it becomes the default and every
    other version retires.

    wanted: None for what was wanted of it, else of the default version, else one replica.
    """
    if wanted is None:
        wanted = replace(plan.versions.get(version) or plan.versions.get(plan.default) or Wanted(1), retiring=False)
    versions = dict(plan.versions)
    if not keep_others:
        versions = {number: replace(other, retiring=True) for number, other in versions.items()}
    versions[version] = wanted
    return Plan(versions, plan.default if keep_others and plan.default else version)


def undeploy(plan: Plan, version: int) -> Plan:
    """Wants a version gone, 0 for all.

    When the default goes, the highest version that was to stay takes its place, else the highest that was retiring:
    undeploying a version that never became ready brings back the one before.
    """
    versions = {number: wanted for number, wanted in plan.versions.items() if version not in (0, number)}
    if not versions:
        return NOTHING
    if plan.default in versions:
        return Plan(versions, plan.default)
    default = max(versions, key=lambda number: (not versions[number].retiring, number))
    versions[default] = replace(versions[default], retiring=False)
    return Plan(versions, default)


def retired(plan: Plan, ready: Mapping[int, int], present: Mapping[int, int]) -> tuple[int, ...]:
    """Retiring versions that have done their duty: the default has all its replicas (those that it
    has at least, where their number moves) and theirs are gone.

    ready: READY replicas by version; present: replicas in any state by version.
    """
    retiring = [number for number, wanted in plan.versions.items() if wanted.retiring]
    if not retiring or ready.get(plan.default, 0) < plan.versions[plan.default].replicas:
        return ()
    return tuple(sorted(number for number in retiring if not present.get(number, 0)))


def without(plan: Plan, versions: tuple[int, ...]) -> Plan:
    """The plan without those retiring versions."""
    left = {number: wanted for number, wanted in plan.versions.items() if not (wanted.retiring and number in versions)}
    return Plan(left, plan.default)
