"""Which version runs on which worker. Pure: the same snapshot gives the same plan, and a plan carried out gives itself.

Rules, strongest first:
1. What is reserved never exceeds what a worker or any of its devices offers; the worker has the engine; one replica of
   a version per worker at most.
2. What is reserved for a tenant and not used by it is promised to nobody else; what held it before keeps it.
   Selectors, taints, anti-affinity and required spread always hold for what is placed. A READY replica that they send
   away leaves as rule 3 says.
3. A replica stays where it is. It goes when nobody wants it, when its worker is gone or cannot hold it any more. Where
   it may not stay, since its worker drains or rule 2 or a move says so, it leaves as soon as others are READY in its
   place.
4. A retiring version stays until the default version has all its replicas READY. It is placed anew only while the
   default version has none READY.
5. Higher priority first; then every version gets its first replica before any gets its second; among equals the bigger
   first. Each goes where it has affinity, else to the failure domain with the fewest copies, there to the worker that
   is then the least reserved.
6. Where the default version fits nowhere, retiring replicas of the same model make room, as long as another replica of
   the model is READY elsewhere.
7. Where a replica fits nowhere, others move when the place is worth it (room.py), else replicas of lower priority are
   evicted. What is pinned neither moves nor is evicted.
"""

from __future__ import annotations

from .explain import explain
from .planner import Plan, Planner, changes, plan
from .room import is_coming, would_fit

__all__ = ["Plan", "Planner", "changes", "explain", "is_coming", "plan", "would_fit"]
