"""What a deployment becomes when somebody deploys, undeploys, or when its new version has become ready (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Wanted:
    """One wanted version. retiring: serves only until the default version is ready."""

    replicas: int
    retiring: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted of one model: versions by number, and the one that serves a request that names none."""

    versions: Mapping[int, Wanted] = field(default_factory=dict)
    default: int = 0


NOTHING = Plan()


def deploy(plan: Plan, version: int, replicas: int, *, keep_others: bool) -> Plan:
    """Wants a version. Unless others are kept, it becomes the default and every other version retires."""
    versions = dict(plan.versions)
    if not keep_others:
        versions = {number: replace(wanted, retiring=True) for number, wanted in versions.items()}
    versions[version] = Wanted(replicas)
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
    """Retiring versions that have done their duty: the default has all its replicas and theirs are gone.

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
