"""What the registry's records of builds promise, on SQLite and on PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.errors import Conflict, GateFailed, NotFound, ResourceExhausted
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2, models_pb2
from services.registry.build import overrides
from services.registry.build.overrides import Override
from services.registry.build.store import USE_MICROSECONDS, BuildStore, NewBuild
from services.registry.collector.references import References
from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore
from services.registry.deployments import Wanted
from services.registry.store import Store
from tests.contract.conftest import Clock
from tests.harness.build_service import running
from tests.harness.registry import new

DIGEST = "sha256:" + "cd" * 32


@pytest.fixture
def builds(database: Database) -> BuildStore:
    return BuildStore(database, clock=Clock())


def asked(name: str = "digits", *steps: str, number: int = 1, key: str = "", fingerprint: str = "f") -> NewBuild:
    spec = manifest_pb2.BuildSpec()
    for step in steps or ("halve", "gate"):
        spec.steps.add(id=step, step=step)
    return NewBuild(name, number, spec, "tester", key, fingerprint)


def done(step: str, key: str) -> pb.StepStatus:
    status = pb.StepStatus(id=step, step=step, state=pb.BUILD_STATE_SUCCEEDED, key=key, report="{}")
    status.outputs["model"].CopyFrom(models_pb2.Artifact(digest=DIGEST, size_bytes=7))
    return status


def plan(build_id: str, profile: str = "x:1/2/4") -> pb.Engine:
    engine = pb.Engine(source_digest=DIGEST, builder="b", builder_version="1", architecture="sm_89", profile=profile)
    engine.build_id = build_id
    engine.artifact.CopyFrom(models_pb2.Artifact(digest=DIGEST, size_bytes=9))
    return engine


def wanted(engine: pb.Engine) -> pb.FindEngineRequest:
    fields = pb.FindEngineRequest.DESCRIPTOR.fields_by_name
    return pb.FindEngineRequest(**{field: getattr(engine, field) for field in fields})


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_build_is_what_was_asked_for(builds: BuildStore, store: Store) -> None:
    store.publish(new())
    made = builds.create(asked())
    assert (made.name, made.source_version, made.state, made.creator) == ("digits", 1, pb.BUILD_STATE_PENDING, "tester")
    assert [(step.id, step.state) for step in made.steps] == [
        ("halve", pb.BUILD_STATE_PENDING), ("gate", pb.BUILD_STATE_PENDING),
    ]  # fmt: skip
    assert made.source_digest == store.get("digits", 1).artifacts["model"].digest
    assert made.create_time.ToMicroseconds() > 0 and not made.HasField("start_time")
    assert builds.get(made.id) == made
    with pytest.raises(NotFound):
        builds.get("0" * 32)


def test_a_request_key_is_good_for_one_build(builds: BuildStore) -> None:
    assert builds.earlier("digits", "k", "f") is None
    made = builds.create(asked(key="k"))
    assert builds.create(asked(key="k")) == made == builds.earlier("digits", "k", "f")
    with pytest.raises(Conflict):
        builds.create(asked(key="k", fingerprint="other"))
    # Of another model it is another key, and none is none.
    assert builds.create(asked("other", key="k")).id != made.id
    assert builds.create(asked()).id != builds.create(asked()).id


def test_the_same_request_from_many_makes_one_build(builds: BuildStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: _tried(builds), range(16)))
    ids = {found for found in results if found}
    assert len(ids) == 1
    assert len(builds.list_builds("digits", 0, "")[0]) == 1


def _tried(builds: BuildStore) -> str:
    return builds.create(asked(key="k")).id


def test_so_many_wait_and_no_more(database: Database) -> None:
    builds = BuildStore(database, most_waiting=2)
    builds.create(asked())
    builds.create(asked())
    with pytest.raises(ResourceExhausted):
        builds.create(asked())
    assert builds.take() is not None
    builds.create(asked())


def test_one_that_cannot_run_is_on_record(builds: BuildStore) -> None:
    made = builds.create(asked(), refused="there is no step halve")
    assert (made.state, made.reason) == (pb.BUILD_STATE_FAILED, "there is no step halve")
    assert made.end_time == made.create_time
    assert builds.take() is None


def test_pages_are_newest_first_and_without_reports(builds: BuildStore) -> None:
    ids = [builds.create(asked("digits" if number % 2 else "other")).id for number in range(5)]
    builds.save_step(ids[0], 0, done("halve", "key"))
    first, token = builds.list_builds("", 3, "")
    second, end = builds.list_builds("", 3, token)
    assert [build.id for build in (*first, *second)] == ids[::-1] and not end
    assert builds.get(ids[0]).steps[0].report and not second[-1].steps[0].report
    assert [build.id for build in builds.list_builds("digits", 0, "")[0]] == [ids[3], ids[1]]


# --- running ----------------------------------------------------------------------------------------------------------


def test_turns_are_taken_in_the_order_of_asking(builds: BuildStore) -> None:
    ids = [builds.create(asked()).id for _ in range(3)]
    assert builds.queue() == (3, 0)
    first = builds.take()
    assert first is not None and (first.id, first.name, first.number, len(first.steps)) == (ids[0], "digits", 1, 2)
    assert builds.get(ids[0]).state == pb.BUILD_STATE_RUNNING and builds.get(ids[0]).HasField("start_time")
    assert builds.queue() == (2, 1)
    second = builds.take()
    assert second is not None and second.id == ids[1]


def test_cancelling_ends_what_waits_and_wishes_it_of_what_runs(builds: BuildStore) -> None:
    runs, waits = builds.create(asked()).id, builds.create(asked()).id
    builds.take()
    build, ended = builds.cancel(waits)
    assert (build.state, ended) == (pb.BUILD_STATE_CANCELLED, True) and build.HasField("end_time")
    build, ended = builds.cancel(runs)
    assert (build.state, ended) == (pb.BUILD_STATE_RUNNING, False)
    assert builds.cancelled() == {runs}
    builds.end(runs, pb.BUILD_STATE_CANCELLED, reason="it was cancelled")
    assert builds.cancelled() == set() and builds.take() is None
    assert [builds.cancel(one)[1] for one in (runs, waits)] == [False, False]
    with pytest.raises(NotFound):
        builds.cancel("0" * 32)


def test_what_a_registry_left_goes_on_in_its_turn_and_what_was_cancelled_has_ended(builds: BuildStore) -> None:
    left, later, cancelled = (builds.create(asked()).id for _ in range(3))
    builds.take()
    builds.save_step(left, 0, done("halve", "key"))
    builds.cancel(later)
    for _ in range(2):
        builds.take()
    builds.cancel(cancelled)
    assert builds.recover() == (1, 1)
    assert builds.get(cancelled).state == pb.BUILD_STATE_CANCELLED
    again = builds.take()
    assert again is not None and again.id == left
    assert [step.state for step in again.steps] == [pb.BUILD_STATE_SUCCEEDED, pb.BUILD_STATE_PENDING]
    assert builds.take() is None


def test_the_end_is_written_down(builds: BuildStore) -> None:
    made = builds.create(asked()).id
    builds.take()
    builds.end(
        made, pb.BUILD_STATE_SUCCEEDED, result_number=2, gate=pb.GATE_VERDICT_FAILED, failed_checks=("a: b", "ü")
    )
    build = builds.get(made)
    assert (build.state, build.result_version, build.gate) == (pb.BUILD_STATE_SUCCEEDED, 2, pb.GATE_VERDICT_FAILED)
    assert list(build.failed_checks) == ["a: b", "ü"]
    assert builds.queue() == (0, 0)


# --- results, engines, gates ------------------------------------------------------------------------------------------


def test_a_result_is_found_by_its_key_once_it_may_be(builds: BuildStore) -> None:
    made = builds.create(asked()).id
    builds.save_step(made, 0, done("halve", "key"))
    assert builds.result("key") is None
    builds.save_step(made, 0, done("halve", "key"), keep=True)
    builds.save_step(made, 1, done("gate", "key"), keep=True)
    found = builds.result("key")
    assert found is not None and (found.step, found.outputs["model"].size_bytes) == ("gate", 7)


def test_an_engine_is_found_by_all_that_it_depends_on(builds: BuildStore) -> None:
    made = builds.create(asked()).id
    builds.keep_engine(plan(made))
    found = builds.find_engine(wanted(plan(made)))
    assert found is not None and found.build_id == made and found.HasField("create_time")
    assert builds.find_engine(wanted(plan(made, "x:1/2/8"))) is None
    newer = builds.create(asked()).id
    builds.keep_engine(plan(newer))
    assert [engine.build_id for engine in builds.get(newer).engines] == [newer]
    assert not builds.get(made).engines


def test_use_is_noted_now_and_then_only(database: Database) -> None:
    clock = Clock()
    builds = BuildStore(database, clock=clock)
    made = builds.create(asked()).id
    builds.keep_engine(plan(made))
    before = _use(database)
    assert builds.find_engine(wanted(plan(made))) is not None and _use(database) == before
    clock.now += USE_MICROSECONDS
    assert builds.find_engine(wanted(plan(made))) is not None
    assert _use(database) > before


def _use(database: Database) -> int:
    (entry,) = References(database).wanted().entries
    return entry.used


def test_a_gate_holds_a_version_until_somebody_says_why(
    builds: BuildStore, store: Store, deployments: DeploymentStore, database: Database
) -> None:
    store.publish(new())
    made = builds.create(asked()).id
    builds.hold("digits", 1, made, passed=False, failed_checks=["size: too large"])
    with pytest.raises(GateFailed, match="size: too large"):
        deployments.deploy("digits", 1, Wanted(1), keep_others=False)
    assert overrides.listed(database, "", 0) == []
    deployments.deploy("digits", 1, Wanted(1), keep_others=False, override=Override("it is urgent", "me"))
    (record,) = overrides.listed(database, "digits", 0)
    assert (record.who, record.reason, record.build_id) == ("me", "it is urgent", made)
    assert list(record.failed_checks) == ["size: too large"]
    builds.hold("digits", 1, made, passed=True, failed_checks=[])
    deployments.deploy("digits", 1, Wanted(2), keep_others=False)
    assert len(overrides.listed(database, "digits", 0)) == 1


# --- all of it --------------------------------------------------------------------------------------------------------


async def test_a_whole_build(url: str, tmp_path: Path) -> None:
    """The service over this database: asked for, run, found again, its plan found, its files freed."""
    (tmp_path / "registry").mkdir()
    async with running(tmp_path / "registry", url=url) as registry:
        await registry.publish()
        made, said = await registry.ended((await registry.build("append", "compile", "gate", text="!!")).id)
        assert (made.state, made.reason) == (pb.BUILD_STATE_SUCCEEDED, "")
        assert made.result_version == 2 and "published add1@2" in said
        (engine,) = made.engines
        answer = await registry.builds.FindEngine(wanted(engine))
        assert answer.engine == engine
        again, _ = await registry.ended((await registry.build("append", text="!!")).id)
        assert again.steps[0].cached
