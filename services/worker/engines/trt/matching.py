"""Which of a version's plans runs on this worker? (pure)

A plan is bound to its builder, that builder's version and the GPU's architecture. One that is bound to others is not
broken and not wrong: it is a miss in the engine cache, and the answer is the key that would hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import Unsupported
from penstock.plans import PlanHeader


class PlanMissing(Unsupported):
    """A cache miss: no plan of this version is for this worker. The message names the target to compile for."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a plan must have been made with and for. builder, version, architecture: as in PlanHeader."""

    builder: str
    version: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.builder} {self.version} on {self.architecture}"


def choose(plans: Sequence[PlanHeader], target: Target) -> int:
    """Index of the first plan for that target; raises PlanMissing."""
    for index, plan in enumerate(plans):
        if (plan.builder, plan.version) == (target.builder, target.version) and plan.runs_on(target.architecture):
            return index
    have = "; ".join(f"{plan.builder} {plan.version} on {plan.architecture}" for plan in plans[:8]) or "no plan at all"
    raise PlanMissing(
        f"plan cache miss: this worker needs a plan for {target}, and the version has {have}; compile it for that"
    )
