"""Which of a version's plans runs on this worker? (pure)

A plan is bound to its builder, that builder's version and the GPU's architecture. One that is bound to others is not
broken and not wrong: it is a miss in the engine cache, and the answer is the key that would hit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import Unsupported
from penstock.plans import PlanHeader


@dataclass(frozen=True, slots=True)
class Target:
    """What a plan must have been made with and for. builder, version, architecture: as in PlanHeader."""

    builder: str
    version: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.builder} {self.version} on {self.architecture}"

    def met_by(self, plan: PlanHeader) -> bool:
        """Whether a plan runs there."""
        return (plan.builder, plan.version) == (self.builder, self.version) and plan.runs_on(self.architecture)


class PlanMissing(Unsupported):
    """A cache miss: no plan that the engine was given is for this worker. target: what one must be for."""

    def __init__(self, message: str, target: Target, *, detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.target = target


def choose(plans: Sequence[PlanHeader], target: Target) -> int:
    """Index of the first plan for that target; raises PlanMissing."""
    for index, plan in enumerate(plans):
        if target.met_by(plan):
            return index
    have = "; ".join(f"{plan.builder} {plan.version} on {plan.architecture}" for plan in plans[:8]) or "no plan at all"
    raise PlanMissing(f"plan cache miss: this worker needs a plan for {target}, and the version has {have}", target)
