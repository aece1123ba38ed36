"""The engine for a request that leaves things open: a worker knows what it has, not in which shapes others compiled."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from penstock.plans import runs_on
from penstock.v1 import builds_pb2 as pb

from ..database import Database
from ..tables import version_files
from .tables import builds, engines


def is_open(wanted: pb.FindEngineRequest) -> bool:
    """Whether a request takes any precision or any profile."""
    return not (wanted.precision and wanted.profile)


def completed(database: Database, wanted: pb.FindEngineRequest) -> pb.FindEngineRequest | None:
    """The request that names exactly the newest engine that will do; None where there is none. Blocks.

    Engines are looked for among those of builds that started from, or published, a version with that model.
    """
    of_version = sa.and_(
        version_files.c.name == builds.c.name,
        sa.or_(version_files.c.number == builds.c.number, version_files.c.number == builds.c.result_number),
    )
    found = (
        sa.select(engines.c.engine)
        .join(builds, builds.c.id == engines.c.build_id)
        .join(version_files, of_version)
        .where(version_files.c.digest == wanted.source_digest, version_files.c.role == "model")
    )
    with database.read() as connection:
        engine = newest(map(pb.Engine.FromString, connection.scalars(found).all()), wanted)
    if engine is None:
        return None
    return pb.FindEngineRequest(
        source_digest=engine.source_digest,
        builder=engine.builder,
        builder_version=engine.builder_version,
        architecture=engine.architecture,
        precision=engine.precision,
        profile=engine.profile,
    )


def newest(found: Iterable[pb.Engine], wanted: pb.FindEngineRequest) -> pb.Engine | None:
    """The newest of those that will do (pure)."""
    return max((each for each in found if _does(each, wanted)), key=_made, default=None)


def _does(engine: pb.Engine, wanted: pb.FindEngineRequest) -> bool:
    same = ("source_digest", "builder", "builder_version")
    if any(getattr(engine, field) != getattr(wanted, field) for field in same):
        return False
    if any(getattr(wanted, field) not in ("", getattr(engine, field)) for field in ("precision", "profile")):
        return False
    return engine.architecture == wanted.architecture or runs_on(engine.architecture, wanted.architecture)


def _made(engine: pb.Engine) -> int:
    return int(engine.create_time.ToNanoseconds())
