"""A version whose gate failed is not deployed unless somebody says why, and that is written down for good.

Everything that is about to want a version calls `require` inside its own transaction, so that the deployment and its
record are one. Functions block: call them from a thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from penstock.errors import GateFailed
from penstock.v1 import builds_pb2 as pb

from .. import pages
from ..database import Database
from .store import stamp
from .tables import gate_overrides, version_gates


@dataclass(frozen=True, slots=True)
class Override:
    """Why a version is deployed whatever its gate said, and who says so; without a reason it is not."""

    reason: str = ""
    who: str = ""


NONE: Final = Override()


def require(connection: Connection, name: str, number: int, override: Override, now: int) -> None:
    """Raises GateFailed when the version's gate failed and there is no reason to deploy it; records the reason.

    now: microseconds since 1970.
    """
    this = sa.and_(version_gates.c.name == name, version_gates.c.number == number)
    row = connection.execute(sa.select(version_gates).where(this)).one_or_none()
    if row is None or row.passed:
        return
    if not override.reason.strip():
        raise GateFailed(_refused(name, number, json.loads(row.failed_checks)), field="version")
    connection.execute(
        gate_overrides.insert().values(
            name=name,
            number=number,
            build_id=row.build_id,
            who=override.who,
            reason=override.reason,
            failed_checks=row.failed_checks,
            time=now,
        )
    )


def listed(database: Database, name: str, page_size: int) -> list[pb.GateOverride]:
    """The newest overrides, of one model or of all."""
    statement = sa.select(gate_overrides).order_by(gate_overrides.c.id.desc()).limit(pages.size(page_size))
    if name:
        statement = statement.where(gate_overrides.c.name == name)
    with database.read() as connection:
        rows = connection.execute(statement).all()
    return [
        pb.GateOverride(
            name=row.name,
            version=row.number,
            build_id=row.build_id,
            who=row.who,
            reason=row.reason,
            failed_checks=json.loads(row.failed_checks),
            time=stamp(row.time),
        )
        for row in rows
    ]


def _refused(name: str, number: int, failed: Sequence[str]) -> str:
    checks = "; ".join(failed[:5]) + (f" and {len(failed) - 5} more" if len(failed) > 5 else "")
    return (
        f"model {name!r}: version {number} did not pass its gate ({checks[:600]}); build a better one, "
        "or say why to deploy it all the same (override_gate)"
    )
