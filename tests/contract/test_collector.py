"""Freeing what nobody needs, with real files, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from penstock.errors import NotFound, Unavailable
from penstock.v1 import models_pb2
from services.registry import tables
from services.registry.blobs import LocalBlobStore
from services.registry.collector.cache import Limits
from services.registry.collector.references import KEPT_COLLECTIONS, References
from services.registry.database import Database
from services.registry.disk import locked
from tests.harness.registry import collector
from tests.harness.storage import Shelf, digest_of, source

NOTHING = Limits(bytes=0)


@pytest.fixture
def shelf(database: Database, tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(database, tmp_path / "registry")
    yield made
    made.close()


# --- what stays and what goes -----------------------------------------------------------------------------------------


def test_an_upload_that_nobody_publishes_goes_when_its_time_is_over(shelf: Shelf) -> None:
    digest = shelf.upload(b"abandoned")
    made = shelf.collect()
    assert (made.freed_artifacts, dict(made.kept_bytes)) == (0, {"new": 9})
    shelf.age()
    made = shelf.collect()
    assert (made.freed_artifacts, made.freed_bytes, [one.digest for one in made.largest]) == (1, 9, [digest])
    assert shelf.here() == set()


def test_asking_whether_an_artifact_is_there_keeps_it(shelf: Shelf) -> None:
    digest = shelf.upload(b"old")
    shelf.age()
    assert shelf.upload(b"old") == digest  # which asks, hears that it is there, and sends nothing
    assert shelf.collect().freed_artifacts == 0
    assert shelf.here() == {digest}


def test_what_versions_name_stays_and_goes_with_the_last_of_them(shelf: Shelf) -> None:
    shared = b"weights of two"
    first = shelf.published(source("first"), shared)
    second = shelf.published(source("second"), shared)
    everything = shelf.here()
    shelf.age()
    made = shelf.collect()
    assert shelf.here() == everything == {
        first.manifest_digest, second.manifest_digest, digest_of(shared), digest_of(source("first")),
        digest_of(source("second")),
    }  # fmt: skip
    assert made.kept_artifacts == 5 and set(made.kept_bytes) == {"versions"}
    shelf.store.delete("digits", 1)
    assert shelf.collect().freed_artifacts == 2
    assert shelf.here() == {second.manifest_digest, digest_of(shared), digest_of(source("second"))}
    shelf.store.delete("digits", 2)
    assert shelf.collect().freed_artifacts == 3
    assert shelf.here() == set()


def test_what_a_waiting_build_reads_stays_though_its_version_is_deleted(shelf: Shelf) -> None:
    version = shelf.published(source("model"))
    samples = shelf.upload(b"samples")
    build = shelf.build(version.version, samples=samples)
    shelf.store.delete("digits", version.version)
    shelf.age()
    made = shelf.collect()
    assert shelf.here() == {digest_of(source("model")), digest_of(b"more"), samples}
    assert made.freed_artifacts == 1 and set(made.kept_bytes) == {"builds"}  # the manifest is read by no step
    shelf.end(build)
    assert shelf.collect().freed_artifacts == 3
    assert shelf.here() == set()


def test_what_a_manifest_tells_its_build_to_read_stays_with_the_version(shelf: Shelf) -> None:
    samples = shelf.upload(b"samples")
    steps = f"build: {{steps: [{{step: quantise, inputs: {{samples: '{samples}'}}}}]}}"
    version = shelf.published(source("model"), manifest=steps)
    shelf.age()
    assert shelf.collect().freed_artifacts == 0
    shelf.store.delete("digits", version.version)
    shelf.collect()
    assert shelf.here() == set()


def test_results_of_steps_stay_within_the_cache_and_always_while_their_build_runs(shelf: Shelf) -> None:
    version = shelf.published(source("model"))
    build = shelf.build(version.version, steps=2)
    shelf.step(build, "old", b"old result")
    shelf.step(build, "new", b"new result", position=1)
    plan = shelf.plan(build, "p", b"the plan")
    shelf.age()
    made = shelf.collect(limits=NOTHING)
    assert (made.evicted_results, made.evicted_plans) == (0, 1), "of the plan, no step has spoken"
    assert {digest_of(b"old result"), digest_of(b"new result")} < shelf.here()
    assert shelf.builds.find_engine(plan) is None
    shelf.end(build)
    made = shelf.collect(limits=Limits(bytes=10))
    assert (made.evicted_results, made.freed_artifacts, made.kept_bytes["cache"]) == (1, 1, 10)
    assert shelf.builds.result("old") is None and shelf.builds.result("new") is not None
    made = shelf.collect(limits=Limits(age=0))
    assert made.evicted_results == 1 and digest_of(b"new result") not in shelf.here()


def test_a_result_that_was_published_is_kept_by_its_version(shelf: Shelf) -> None:
    version = shelf.published(source("model"))
    build = shelf.build(version.version)
    shelf.step(build, "key", source("made"))
    made = shelf.publish(source("made"))
    shelf.end(build)
    shelf.age()
    # It costs the cache nothing, so it is not forgotten for its size, and when it is, the version still has it.
    assert shelf.collect(limits=NOTHING).evicted_results == 0
    assert shelf.collect(limits=Limits(age=0)).evicted_results == 1
    assert digest_of(source("made")) in shelf.here()
    shelf.store.delete("digits", made.version)
    shelf.collect()
    assert digest_of(source("made")) not in shelf.here()


def test_finding_counts_as_use(database: Database, tmp_path: Path) -> None:
    shelf = Shelf(database, tmp_path / "registry")
    now = 1_700_000_000_000_000

    def clock() -> int:
        return now

    shelf.builds._clock = clock
    build = shelf.build(shelf.published(source("model")).version)
    first, second = shelf.plan(build, "first", b"plan one"), shelf.plan(build, "second", b"plan two")
    now += 3600 * 10**6
    assert shelf.builds.find_engine(first) is not None
    shelf.end(build)
    shelf.age()
    assert shelf.collect(limits=Limits(bytes=8)).evicted_plans == 1
    assert shelf.builds.find_engine(second) is None
    found = shelf.builds.find_engine(first)
    assert found is not None and found.artifact.digest in shelf.here()
    shelf.close()


def test_a_dry_run_says_what_a_collection_does_and_does_nothing(shelf: Shelf) -> None:
    version = shelf.published(source("model"))
    build = shelf.build(version.version)
    shelf.step(build, "key", b"result")
    shelf.end(build)
    shelf.store.delete("digits", version.version)
    shelf.upload(b"left")
    shelf.age()
    before = shelf.here()
    said = shelf.collect(dry_run=True, limits=NOTHING)
    assert shelf.here() == before and shelf.builds.result("key") is not None
    assert said.dry_run and said.id == 0
    assert References(shelf.database).listed(0) == []
    done = shelf.collect(limits=NOTHING)
    # What the deleted version named is let go of by the collection itself.
    for field in ("freed_artifacts", "freed_bytes", "evicted_results", "kept_artifacts", "kept_bytes", "largest"):
        assert getattr(said, field) == getattr(done, field), field
    assert shelf.here() == set()


# --- the record -------------------------------------------------------------------------------------------------------


def test_collections_are_on_record(shelf: Shelf) -> None:
    references = References(shelf.database)
    assert references.microseconds_since_last() is None
    shelf.upload(b"left")
    shelf.age()
    first, second = shelf.collect(), shelf.collect()
    assert (first.who, first.freed_artifacts, second.freed_artifacts) == ("tester", 1, 0)
    assert [one.id for one in references.listed(0)] == [second.id, first.id]
    assert references.listed(1) == [second]
    since = references.microseconds_since_last()
    assert since is not None and 0 <= since < 60 * 10**6


def test_the_record_is_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KEPT_COLLECTIONS == 1000
    monkeypatch.setattr("services.registry.collector.references.KEPT_COLLECTIONS", 2)
    made = [shelf.collect() for _ in range(4)]
    assert [one.id for one in References(shelf.database).listed(0)] == [made[3].id, made[2].id]


def test_one_registry_collects_at_a_time(shelf: Shelf) -> None:
    shelf.collect()
    with locked(shelf.folder / "locks" / "collector", 0.0):
        with pytest.raises(Unavailable):
            shelf.collect()
        assert shelf.collect(dry_run=True).dry_run
    shelf.collect()


def test_one_that_is_stopped_says_so(shelf: Shelf) -> None:
    shelf.upload(b"left")
    shelf.age()
    made = collector(shelf.database, shelf.blobs, shelf.folder)
    made.stop()
    assert made.collect("", dry_run=False).partial
    assert References(shelf.database).listed(0)[0].partial
    assert shelf.here() == {digest_of(b"left")}


# --- races ------------------------------------------------------------------------------------------------------------


class Interrupted(LocalBlobStore):
    """Somebody does something at the worst moment of a collection."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def remove(self, digests: Iterable[str], before: float) -> set[str]:
        doomed = set(digests)
        self.meanwhile()
        return super().remove(doomed, before)


def test_a_version_that_names_what_is_about_to_go_keeps_it(shelf: Shelf) -> None:
    """The database was asked already when an old upload is published after all."""
    shelf.upload(source("model"))
    shelf.upload(b"more")
    shelf.age()
    blobs = Interrupted(shelf.folder, shelf.threads)
    versions: list[models_pb2.ModelVersion] = []

    def meanwhile() -> None:
        if not versions:
            versions.append(shelf.publish(source("model")))

    blobs.meanwhile = meanwhile
    made = collector(shelf.database, blobs, shelf.folder).collect("", dry_run=False)
    assert versions[0].version == 1
    assert shelf.here() >= {digest_of(source("model")), digest_of(b"more")}
    assert made.freed_artifacts == 0
    shelf.age()
    assert shelf.collect().freed_artifacts == 0


def test_a_plan_that_is_found_while_it_is_about_to_go_stays_to_be_fetched(shelf: Shelf) -> None:
    build = shelf.build(shelf.published(source("model")).version)
    wanted = shelf.plan(build, "p", b"the plan")
    shelf.end(build)
    shelf.age()
    blobs = Interrupted(shelf.folder, shelf.threads)
    # As Builds.find_engine does it: the row was read before it went, its files are claimed after.
    found = shelf.builds.find_engine(wanted)
    assert found is not None

    def meanwhile() -> None:
        blobs.claim(found.artifact.digest)

    blobs.meanwhile = meanwhile
    made = collector(shelf.database, blobs, shelf.folder, limits=NOTHING).collect("", dry_run=False)
    assert made.evicted_plans == 1 and made.freed_artifacts == 0
    assert shelf.here() >= {digest_of(b"the plan")}


def test_a_result_that_is_used_meanwhile_is_not_forgotten(shelf: Shelf) -> None:
    build = shelf.build(shelf.published(source("model")).version)
    shelf.step(build, "key", b"result")
    shelf.end(build)
    references = References(shelf.database)
    seen = references.wanted().entries
    shelf.builds._clock = lambda: seen[0].used + 10**9
    assert shelf.builds.result("key") is not None
    assert references.evict(seen) == ()
    assert shelf.builds.result("key") is not None
    assert references.evict(references.wanted().entries)[0].key == "key"


def test_publishing_and_collecting_at_the_same_time_loses_nothing(shelf: Shelf) -> None:
    """Two registries with one folder: whichever comes first, a version that was published has its files."""
    other = Shelf(shelf.database, shelf.folder)
    outcomes = set()
    with ThreadPoolExecutor(2) as pool:
        for turn in range(40):
            model = source(f"model {turn}")
            shelf.upload(model)
            shelf.upload(b"more")
            shelf.age()
            barrier = threading.Barrier(2)

            def publish(model: bytes = model, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait()
                try:
                    other.publish(model)
                except NotFound:
                    return False
                return True

            published = pool.submit(publish)
            barrier.wait()
            shelf.collect()
            outcomes.add(published.result())
            if published.result():
                assert digest_of(model) in shelf.here()
    for version in shelf.store.list_versions("digits", 1000, "")[0] if True in outcomes else ():
        assert {artifact.digest for artifact in version.artifacts.values()} <= shelf.here()
    other.close()


# --- whatever happens -------------------------------------------------------------------------------------------------

CONTENTS = [source(f"content {number}" + "." * number) for number in range(6)]


class Storage(RuleBasedStateMachine):
    """Uploads, versions, builds, results, plans and collections in any order; what is named is never lost."""

    shelf: Shelf
    versions: Bundle[int] = Bundle("versions")
    builds: Bundle[str] = Bundle("builds")

    @initialize()
    def begin(self) -> None:
        self.named: dict[int, set[str]] = {}
        self.running: dict[str, set[str]] = {}
        self.fresh: set[str] = set()

    @rule(data=st.sampled_from(CONTENTS))
    def upload(self, data: bytes) -> None:
        self.fresh.add(self.shelf.upload(data))

    @rule(target=versions, model=st.sampled_from(CONTENTS), more=st.sampled_from(CONTENTS))
    def publish(self, model: bytes, more: bytes) -> int:
        there = {digest_of(model), digest_of(more)} <= self.shelf.here()
        try:
            made = self.shelf.publish(model, more)
        except NotFound:
            assert not there
            # Roles are looked at in their order; the first that is missing ends it.
            self.fresh |= {digest_of(model)} & self.shelf.here()
            return 0
        assert there
        digests = {made.manifest_digest, digest_of(model), digest_of(more)}
        self.named[made.version] = digests
        self.fresh |= digests
        return made.version

    @rule(number=versions)
    def delete(self, number: int) -> None:
        if self.named.pop(number, None):
            self.shelf.store.delete("digits", number)

    @rule(target=builds, number=versions, data=st.sampled_from(CONTENTS))
    def ask(self, number: int, data: bytes) -> str:
        if number not in self.named or digest_of(data) not in self.shelf.here():
            return ""
        made = self.shelf.build(number, samples=digest_of(data))
        files = {artifact.digest for artifact in self.shelf.store.get("digits", number).artifacts.values()}
        self.running[made] = {digest_of(data), *files}
        self.fresh.add(digest_of(data))
        return made

    @rule(build=builds, data=st.sampled_from(CONTENTS))
    def step(self, build: str, data: bytes) -> None:
        if build in self.running:
            self.shelf.step(build, f"makes {CONTENTS.index(data)}", data)
            self.running[build].add(digest_of(data))
            self.fresh.add(digest_of(data))

    @rule(build=builds, profile=st.sampled_from("pq"), data=st.sampled_from(CONTENTS))
    def plan(self, build: str, profile: str, data: bytes) -> None:
        if build in self.running:
            self.shelf.plan(build, profile, data)
            self.fresh.add(digest_of(data))

    @rule(build=builds)
    def end(self, build: str) -> None:
        if self.running.pop(build, None):
            self.shelf.end(build)

    @rule()
    def time_passes(self) -> None:
        self.shelf.age()
        self.fresh.clear()

    @precondition(lambda self: self.named or self.running)
    @rule(most=st.sampled_from([None, 0, 40, 200]), age=st.sampled_from([None, None, 0]))
    def collect(self, most: int | None, age: int | None) -> None:
        limits = Limits(most, age)
        said = self.shelf.collect(dry_run=True, limits=limits)
        done = self.shelf.collect(limits=limits)
        assert (said.freed_artifacts, said.freed_bytes) == (done.freed_artifacts, done.freed_bytes)
        assert done.kept_artifacts == len(self.shelf.here())
        cached = {digest for entry in References(self.shelf.database).wanted().entries for digest in entry.files}
        assert self.shelf.here() == self._needed() | cached
        if most == 0:
            assert cached <= self._needed()

    def _needed(self) -> set[str]:
        return self.fresh.union(*self.named.values(), *self.running.values())

    @invariant()
    def nothing_that_is_named_is_lost(self) -> None:
        assert self._needed() <= self.shelf.here()


@pytest.mark.timeout(300)
def test_nothing_that_is_named_is_ever_lost(database: Database, tmp_path: Path) -> None:
    class Here(Storage):
        def __init__(self) -> None:
            super().__init__()
            with database.write() as connection:
                for table in reversed(tables.metadata.sorted_tables):
                    connection.execute(table.delete())
            self.shelf = Shelf(database, tmp_path / uuid.uuid4().hex)

        def teardown(self) -> None:
            self.shelf.close()

    few = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Here, settings=few)
