"""Jobs in SQL: what was asked for, how far it is, and what was made. Methods block: call them from a thread.

A job is changed by its runner alone, but for `cancel`, which only leaves a wish; so a registry that is killed leaves
rows from which the next one goes on.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection

from penstock.errors import Conflict, NotFound, ResourceExhausted
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2

from .. import pages
from ..database import LOCK_OF_BUILDS, Database, take_turns
from ..store import now_microseconds
from ..tables import version_files
from .tables import build_results, build_steps, builds, engines, version_gates

USE_MICROSECONDS: Final = 60_000_000
"""What was used so short a time ago is not noted as used again."""
ENDED: Final = (pb.BUILD_STATE_SUCCEEDED, pb.BUILD_STATE_FAILED, pb.BUILD_STATE_CANCELLED)


@dataclass(frozen=True, slots=True)
class NewBuild:
    """A job to record; its spec is complete, with every id and input."""

    name: str
    number: int
    spec: manifest_pb2.BuildSpec
    creator: str
    request_key: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """A job to go on with. steps: their states by position."""

    id: str
    name: str
    number: int
    spec: manifest_pb2.BuildSpec
    creator: str
    steps: tuple[pb.StepStatus, ...]


class BuildStore:
    """The jobs.

    Args:
        database: migrated.
        most_waiting: jobs that may wait for their turn.
        clock: microseconds since 1970.
    """

    def __init__(
        self, database: Database, *, most_waiting: int = 100, clock: Callable[[], int] = now_microseconds
    ) -> None:
        self._database = database
        self._most_waiting = most_waiting
        self._clock = clock

    def create(self, new: NewBuild, *, refused: str = "") -> pb.Build:
        """Records a job, or finds the one that the same request made before.

        refused: why it can never run; it is recorded as failed, for whoever looks for it.

        Raises Conflict for a request key used for something else, ResourceExhausted when too many wait.
        """
        with self._database.write() as connection:
            take_turns(connection, LOCK_OF_BUILDS)
            if found := _earlier(connection, new.name, new.request_key, new.fingerprint):
                return _build(connection, found)
            waiting = sa.select(sa.func.count()).where(builds.c.state == pb.BUILD_STATE_PENDING)
            if (connection.scalar(waiting) or 0) >= self._most_waiting:
                text = f"{self._most_waiting} jobs wait already; try again later"
                raise ResourceExhausted(text, retry_after=60.0)
            now = self._clock()
            turn = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(builds.c.turn), 0) + 1))
            made = secrets.token_hex(16)
            connection.execute(
                builds.insert().values(
                    id=made,
                    turn=turn,
                    name=new.name,
                    number=new.number,
                    spec=new.spec.SerializeToString(deterministic=True),
                    state=pb.BUILD_STATE_FAILED if refused else pb.BUILD_STATE_PENDING,
                    reason=refused,
                    cancelled=False,
                    creator=new.creator,
                    request_key=new.request_key or None,
                    fingerprint=new.fingerprint,
                    result_number=0,
                    gate=pb.GATE_VERDICT_UNSPECIFIED,
                    failed_checks="[]",
                    create_time=now,
                    start_time=0,
                    end_time=now if refused else 0,
                )
            )
            for position, step in enumerate(new.spec.steps):
                status = pb.StepStatus(id=step.id, step=step.step, state=pb.BUILD_STATE_PENDING)
                row = {"build_id": made, "position": position, "status": status.SerializeToString()}
                connection.execute(build_steps.insert().values(row))
            return _build(connection, made)

    def earlier(self, name: str, request_key: str, fingerprint: str) -> pb.Build | None:
        """The job that this request made before; raises Conflict as `create`."""
        with self._database.read() as connection:
            found = _earlier(connection, name, request_key, fingerprint)
            return _build(connection, found) if found else None

    def get(self, build_id: str) -> pb.Build:
        """A job; raises NotFound."""
        with self._database.read() as connection:
            return _build(connection, build_id)

    def list_builds(self, name: str, page_size: int, page_token: str) -> tuple[list[pb.Build], str]:
        """Jobs, newest first, without their reports, and the token of the next page."""
        size, asked = pages.size(page_size), pages.question("builds", name)
        last = pages.last_of(asked, page_token)
        statement = sa.select(builds.c.id, builds.c.turn).order_by(builds.c.turn.desc()).limit(size + 1)
        if name:
            statement = statement.where(builds.c.name == name)
        if last.isascii() and last.isdigit() and len(last) <= 18:
            statement = statement.where(builds.c.turn < int(last))
        with self._database.read() as connection:
            rows = connection.execute(statement).all()
            found = [_build(connection, row.id) for row in rows[:size]]
        for build in found:
            for step in build.steps:
                step.report = ""
        return found, pages.token(asked, str(rows[size - 1].turn)) if len(rows) > size else ""

    def cancel(self, build_id: str) -> tuple[pb.Build, bool]:
        """Wishes a job ended; one that waits has ended with that, which the second value says; one that ended stays as
        it is."""
        with self._database.write() as connection:
            take_turns(connection, LOCK_OF_BUILDS)
            build = _build(connection, build_id)
            if build.state in ENDED:
                return build, False
            waits = build.state == pb.BUILD_STATE_PENDING
            values: dict[str, Any] = {"cancelled": True}
            if waits:
                values |= self._over()
            connection.execute(builds.update().where(builds.c.id == build_id).values(values))
            return _build(connection, build_id), waits

    # --- of the runner ------------------------------------------------------------------------------------------------

    def recover(self) -> tuple[int, int]:
        """Puts what a registry left in the middle back in the queue, at its old turn, and ends those among it that
        somebody cancelled; how many jobs go on, how many have ended."""
        with self._database.write() as connection:
            take_turns(connection, LOCK_OF_BUILDS)
            running = builds.c.state == pb.BUILD_STATE_RUNNING
            ended = connection.execute(builds.update().where(running, builds.c.cancelled).values(self._over()))
            left = connection.execute(builds.update().where(running).values(state=pb.BUILD_STATE_PENDING))
            return left.rowcount, ended.rowcount

    def queue(self) -> tuple[int, int]:
        """How many jobs wait and run."""
        counted = sa.select(builds.c.state, sa.func.count()).group_by(builds.c.state)
        active = (pb.BUILD_STATE_PENDING, pb.BUILD_STATE_RUNNING)
        with self._database.read() as connection:
            rows = connection.execute(counted.where(builds.c.state.in_(active))).all()
        found: dict[int, int] = {state: count for state, count in rows}
        return found.get(active[0], 0), found.get(active[1], 0)

    def take(self) -> Work | None:
        """The job whose turn it is, RUNNING from now on; None when none waits."""
        with self._database.write() as connection:
            take_turns(connection, LOCK_OF_BUILDS)
            waiting = builds.c.state == pb.BUILD_STATE_PENDING
            row = connection.execute(sa.select(builds).where(waiting).order_by(builds.c.turn).limit(1)).one_or_none()
            if row is None:
                return None
            values = {"state": pb.BUILD_STATE_RUNNING, "start_time": row.start_time or self._clock()}
            connection.execute(builds.update().where(builds.c.id == row.id).values(values))
            spec = manifest_pb2.BuildSpec.FromString(row.spec)
            return Work(row.id, row.name, row.number, spec, row.creator, tuple(_steps(connection, row.id)))

    def cancelled(self) -> set[str]:
        """Ids of running jobs that should end."""
        wanted = sa.select(builds.c.id).where(builds.c.state == pb.BUILD_STATE_RUNNING, builds.c.cancelled)
        with self._database.read() as connection:
            return set(connection.scalars(wanted).all())

    def save_step(self, build_id: str, position: int, status: pb.StepStatus, *, keep: bool = False) -> None:
        """Writes how far a step is. keep: its result may be used again under its key."""
        with self._database.write() as connection:
            this = sa.and_(build_steps.c.build_id == build_id, build_steps.c.position == position)
            connection.execute(build_steps.update().where(this).values(status=status.SerializeToString()))
            if keep:
                connection.execute(build_results.delete().where(build_results.c.key == status.key))
                now = self._clock()
                row = {"key": status.key, "status": status.SerializeToString(), "create_time": now, "use_time": now}
                connection.execute(build_results.insert().values(row))

    def result(self, key: str) -> pb.StepStatus | None:
        """What a step with this key gave before; that counts as a use of it."""
        data = self._used(build_results, build_results.c.status, key)
        return None if data is None else pb.StepStatus.FromString(data)

    def end(
        self,
        build_id: str,
        state: pb.BuildState.ValueType,
        *,
        reason: str = "",
        result_number: int = 0,
        gate: pb.GateVerdict.ValueType = pb.GATE_VERDICT_UNSPECIFIED,
        failed_checks: Sequence[str] = (),
    ) -> None:
        """Writes how a job ended, and what its gate said of the version that it published."""
        checks = json.dumps(list(failed_checks))
        values = {"state": state, "reason": reason, "result_number": result_number, "end_time": self._clock()}
        values |= {"gate": gate, "failed_checks": checks}
        with self._database.write() as connection:
            connection.execute(builds.update().where(builds.c.id == build_id).values(values))

    def hold(self, name: str, number: int, build_id: str, *, passed: bool, failed_checks: Sequence[str]) -> None:
        """Writes what the gate said of a version. A later job that finds the same version has the last word."""
        row = {"name": name, "number": number, "build_id": build_id, "passed": passed}
        with self._database.write() as connection:
            this = sa.and_(version_gates.c.name == name, version_gates.c.number == number)
            connection.execute(version_gates.delete().where(this))
            connection.execute(version_gates.insert().values(**row, failed_checks=json.dumps(list(failed_checks))))

    def keep_engine(self, engine: pb.Engine) -> None:
        """Writes an engine down under everything that it depends on; a newer one takes the place of an older."""
        now = self._clock()
        engine.create_time.FromMicroseconds(now)
        key = engine_key(engine)
        with self._database.write() as connection:
            connection.execute(engines.delete().where(engines.c.key == key))
            row = {"key": key, "build_id": engine.build_id, "engine": engine.SerializeToString(), "use_time": now}
            connection.execute(engines.insert().values(row))

    def find_engine(self, wanted: pb.FindEngineRequest) -> pb.Engine | None:
        """The engine for exactly this, None for a miss; that counts as a use of it."""
        data = self._used(engines, engines.c.engine, engine_key(wanted))
        return None if data is None else pb.Engine.FromString(data)

    def _over(self) -> dict[str, Any]:
        """What a job is that ended without having run to its end."""
        return {"state": pb.BUILD_STATE_CANCELLED, "end_time": self._clock()}

    def _used(self, table: sa.Table, content: sa.Column[bytes], key: str) -> bytes | None:
        """What is kept under a key. That it was used is written down, not more often than USE_MICROSECONDS."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(content, table.c.use_time).where(table.c.key == key)).one_or_none()
        if row is None:
            return None
        now = self._clock()
        if now - row.use_time >= USE_MICROSECONDS:
            # Whoever asks gets an answer also where nothing can be written, such as on a full disk.
            with suppress(ResourceExhausted), self._database.write() as connection:
                connection.execute(table.update().where(table.c.key == key).values(use_time=now))
        return bytes(row[0])


def engine_key(of: pb.Engine | pb.FindEngineRequest) -> str:
    """sha256 of everything that an engine depends on."""
    parts = [of.source_digest, of.builder, of.builder_version, of.architecture, of.precision, of.profile]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _earlier(connection: Connection, name: str, request_key: str, fingerprint: str) -> str:
    if not request_key:
        return ""
    this = sa.and_(builds.c.name == name, builds.c.request_key == request_key)
    row = connection.execute(sa.select(builds.c.id, builds.c.fingerprint).where(this)).one_or_none()
    if row is None:
        return ""
    if row.fingerprint != fingerprint:
        raise Conflict("request_key: was used to ask for something else; choose a new one", field="request_key")
    return str(row.id)


def _build(connection: Connection, build_id: str) -> pb.Build:
    row = connection.execute(sa.select(builds).where(builds.c.id == build_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no build {build_id[:32]!a}", field="id")
    made = pb.Build(
        id=row.id,
        name=row.name,
        source_version=row.number,
        state=row.state,
        reason=row.reason,
        steps=_steps(connection, build_id),
        result_version=row.result_number,
        gate=row.gate,
        failed_checks=json.loads(row.failed_checks),
        creator=row.creator,
        create_time=stamp(row.create_time),
        start_time=stamp(row.start_time),
        end_time=stamp(row.end_time),
    )
    this = (version_files.c.name == row.name, version_files.c.number == row.number, version_files.c.role == "model")
    # A version that was deleted since may have no files any more; the job stays what it was.
    made.source_digest = connection.scalar(sa.select(version_files.c.digest).where(*this)) or ""
    found = connection.scalars(sa.select(engines.c.engine).where(engines.c.build_id == build_id)).all()
    made.engines.extend(pb.Engine.FromString(data) for data in found)
    return made


def _steps(connection: Connection, build_id: str) -> list[pb.StepStatus]:
    statement = sa.select(build_steps.c.status).where(build_steps.c.build_id == build_id)
    rows = connection.scalars(statement.order_by(build_steps.c.position)).all()
    return [pb.StepStatus.FromString(data) for data in rows]


def stamp(microseconds: int) -> Timestamp | None:
    """A time of the database as a message; None for none."""
    if not microseconds:
        return None
    made = Timestamp()
    made.FromMicroseconds(microseconds)
    return made
