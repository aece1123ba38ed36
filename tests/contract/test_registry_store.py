"""What the registry's records promise, on SQLite and, where PENSTOCK_TEST_POSTGRES_URL names one, on PostgreSQL."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from penstock.errors import AlreadyExists, Conflict, InUse, InvalidArgument, NotFound, PenstockError, Unavailable
from penstock.v1 import manifest_pb2, models_pb2
from services.registry import tables
from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore, message
from services.registry.deployments import Wanted
from services.registry.store import MAX_NUMBER, NewVersion, Store

POSTGRES = os.environ.get("PENSTOCK_TEST_POSTGRES_URL", "")
NO_POSTGRES = pytest.mark.skipif(not POSTGRES, reason="PENSTOCK_TEST_POSTGRES_URL names no PostgreSQL")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=(pytest.mark.postgres, NO_POSTGRES))])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/a folder 100%/registry.db"
        return
    admin = sa.create_engine(_psycopg(POSTGRES), isolation_level="AUTOCOMMIT")
    name = f"penstock_test_{uuid.uuid4().hex}"
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield _psycopg(POSTGRES).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def _psycopg(url: str) -> sa.URL:
    return sa.make_url(url).set(drivername="postgresql+psycopg")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(url)
    made.migrate()
    yield made
    made.close()


class Clock:
    """Microseconds that go up by one with every look."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database, Clock())


@pytest.fixture
def deployments(database: Database) -> DeploymentStore:
    return DeploymentStore(database, Clock())


DIGEST = "sha256:" + "ab" * 32


def new(name: str = "digits", seal: Callable[[int], str] | None = None, **more: Any) -> NewVersion:
    described = {key: more.pop(key) for key in list(more) if key in manifest_pb2.Manifest.DESCRIPTOR.fields_by_name}
    manifest = manifest_pb2.Manifest(schema="penstock/v1", name=name, format="onnx", **described)
    manifest.resources.memory_bytes = 1000
    return NewVersion(
        manifest=manifest,
        files={"model": models_pb2.Artifact(digest=DIGEST, size_bytes=2**33)},
        publisher="tester",
        seal=seal or (lambda number: f"sha256:{number:064x}"),
        **more,
    )


def versions_of(store: Store, name: str = "digits") -> list[int]:
    return [version.version for version in store.list_versions(name, 0, "")[0]]


# --- the database itself ----------------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    with database.read() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), tables.metadata)
    assert differences == []


def test_migrating_again_changes_nothing_and_several_may_start_at_once(url: str) -> None:
    databases = [Database(url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(Database.migrate, databases))
        assert Store(databases[0]).publish(new()).version == 1
        databases[1].migrate()
        assert Store(databases[1]).get("digits", 1).version == 1
    finally:
        for database in databases:
            database.close()


def test_a_write_that_fails_leaves_nothing(database: Database, store: Store) -> None:
    def fails(number: int) -> str:
        raise OSError("disk")

    with pytest.raises(OSError):
        store.publish(new(seal=fails))
    with pytest.raises(NotFound):
        store.get("digits", None)
    assert store.publish(new()).version == 1


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    away = Database("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(Unavailable) as raised:
        away.migrate()
    assert "127.0.0.1" not in raised.value.message and "127.0.0.1" in raised.value.detail
    folder = tmp_path / "is-a-folder.db"
    folder.mkdir()
    with pytest.raises(Unavailable):
        Database(f"sqlite:///{folder}").migrate()


@pytest.mark.parametrize("bad", ["mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="database"):
        Database(bad)


# --- versions ---------------------------------------------------------------------------------------------------------


def test_a_version_is_what_was_published(store: Store) -> None:
    published = store.publish(new(description="Ziffern ☃", tags={"task": "x"}, author="me"))
    assert (published.version, published.publisher, published.memory_bytes) == (1, "tester", 1000)
    assert published.manifest_digest == f"sha256:{1:064x}"
    assert published.artifacts["model"] == models_pb2.Artifact(digest=DIGEST, size_bytes=2**33)
    assert published.create_time.ToMicroseconds() == 1_700_000_000_000_002
    assert published.manifest.description == "Ziffern ☃"
    for version in (None, 1):
        assert store.get("digits", version) == published


def test_numbers_count_up_per_model(store: Store) -> None:
    assert [store.publish(new()).version for _ in range(3)] == [1, 2, 3]
    assert store.publish(new("other")).version == 1
    assert versions_of(store) == [3, 2, 1]
    assert store.get("digits", None).version == 3


def test_a_chosen_number(store: Store) -> None:
    assert store.publish(new(number=7)).version == 7
    assert store.publish(new()).version == 8
    assert store.publish(new(number=3)).version == 3
    assert store.publish(new()).version == 9
    with pytest.raises(AlreadyExists, match="version 7 exists"):
        store.publish(new(number=7))
    with pytest.raises(InvalidArgument):
        store.publish(new(number=MAX_NUMBER + 1))
    assert versions_of(store) == [9, 8, 7, 3]


def test_a_deleted_number_is_never_taken_again(store: Store) -> None:
    for _ in range(2):
        store.publish(new())
    store.delete("digits", 2)
    assert store.get("digits", None).version == 1
    with pytest.raises(NotFound, match="no version 2"):
        store.get("digits", 2)
    with pytest.raises(NotFound):
        store.delete("digits", 2)
    with pytest.raises(AlreadyExists, match="was deleted"):
        store.publish(new(number=2))
    assert store.publish(new()).version == 3
    for number in (1, 3):
        store.delete("digits", number)
    with pytest.raises(NotFound, match="not known"):
        store.get("digits", None)
    assert store.list_models("", {}, 0, "") == ([], "")
    assert store.publish(new()).version == 4


def test_parallel_publishes_get_distinct_consecutive_numbers(store: Store) -> None:
    barrier = threading.Barrier(20)

    def publish(_: int) -> int:
        barrier.wait()
        return store.publish(new()).version

    with ThreadPoolExecutor(20) as pool:
        numbers = list(pool.map(publish, range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert store.list_models("", {}, 0, "")[0][0].version_count == 20


def test_the_same_request_key_gives_the_first_answer(store: Store) -> None:
    first = store.publish(new(request_key="k", fingerprint="f"))
    assert store.publish(new(request_key="k", fingerprint="f")) == first
    assert store.publish(new("other", request_key="k", fingerprint="g")).version == 1
    with pytest.raises(Conflict, match="something else") as raised:
        store.publish(new(request_key="k", fingerprint="other"))
    assert raised.value.field == "request_key"
    assert versions_of(store) == [1]
    # Deleted, the key is free again (the SDK makes it of the content); the number is not.
    store.delete("digits", 1)
    again = store.publish(new(request_key="k", fingerprint="f"))
    assert again.version == 2
    assert store.publish(new(request_key="k", fingerprint="f")) == again


def test_parallel_retries_of_one_request_publish_once(store: Store) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: store.publish(new(request_key="k", fingerprint="f")), range(10)))
    assert {answer.version for answer in answers} == {1}
    assert versions_of(store) == [1]


def test_what_is_not_there(store: Store) -> None:
    store.publish(new())
    for name, version, words in (
        ("none", None, "model 'none' is not known"),
        ("none", 1, "model 'none' is not known"),
        ("digits", 9, "no version 9; its newest is 1"),
        ("digits", "prod", "no alias 'prod'"),
    ):
        with pytest.raises(NotFound, match=words):
            store.get(name, version)
    with pytest.raises(NotFound):
        store.list_versions("none", 0, "")
    with pytest.raises(NotFound):
        store.delete("none", 1)


# --- pages and search -------------------------------------------------------------------------------------------------


def test_versions_come_in_pages(store: Store) -> None:
    for _ in range(7):
        store.publish(new())
    seen, token = [], ""
    while True:
        page, token = store.list_versions("digits", 3, token)
        seen.append([version.version for version in page])
        if seen == [[7, 6, 5]]:
            # What changes between two pages neither repeats nor hides the rest.
            store.publish(new())
            store.delete("digits", 4)
        if not token:
            break
    assert seen == [[7, 6, 5], [3, 2, 1]]


def test_a_page_of_large_manifests_ends_early(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.registry.store._PAGE_BYTES", 50_000)
    for _ in range(4):
        store.publish(new(description="x" * 30_000))
    first, token = store.list_versions("digits", 4, "")
    second, token2 = store.list_versions("digits", 4, token)
    assert [version.version for version in (*first, *second)] == [4, 3]
    assert token2


def test_models_come_in_pages_by_name(store: Store) -> None:
    names = ["b", "a-x", "a.x", "a_x", "ax", "a1", "c"]
    for name in names:
        store.publish(new(name))
    seen, token = [], ""
    while True:
        page, token = store.list_models("", {}, 2, token)
        seen += [model.name for model in page]
        if not token:
            break
    assert seen == sorted(names)


def test_search_by_words_and_tags(store: Store) -> None:
    store.publish(new("digits", description="Handwritten digits", author="Ada", tags={"task": "image", "stage": "a"}))
    store.publish(new("minilm", description="Sentence ENCODER", framework="torch", tags={"task": "text", "stage": "a"}))
    store.publish(new("percent", description="100% of_all", tags={"task": "text"}))
    store.publish(new("umlaut", description="GRÖSSE und Ärger"))

    def found(query: str = "", **tags: str) -> list[str]:
        return [model.name for model in store.list_models(query, tags, 0, "")[0]]

    assert found("DIGITS ada") == ["digits"]
    assert found("encoder torch") == ["minilm"]
    assert found("encoder ada") == []
    assert found("größe ärger") == ["umlaut"]
    assert found("task=text") == ["minilm", "percent"]
    assert (
        found("100%") == ["percent"]
        and found("f_a") == ["percent"]
        and found("n_c") == []
        and found("%") == ["percent"]
    )
    assert found(task="text") == ["minilm", "percent"]
    assert found("sentence", task="text", stage="a") == ["minilm"]
    assert found(task="tex") == []
    # Only the newest version counts.
    store.publish(new("digits", description="now letters", tags={"task": "letters"}))
    assert found("handwritten") == [] and found(task="image") == [] and found(task="letters") == ["digits"]
    store.delete("digits", 2)
    assert found("handwritten") == ["digits"] and found(task="image") == ["digits"]


def test_a_model_shows_its_newest_version(store: Store) -> None:
    store.publish(new(description="one", author="a", framework="f1", tags={"x": "1"}))
    store.publish(new(description="two", author="b", framework="f2", tags={"y": "2"}))
    store.set_alias("digits", "prod", 1, None)
    (model,) = store.list_models("", {}, 0, "")[0]
    assert (model.description, model.author, model.framework, model.format) == ("two", "b", "f2", "onnx")
    assert (model.latest_version, model.version_count, dict(model.tags)) == (2, 2, {"y": "2"})
    assert dict(model.aliases) == {"prod": 1}
    assert model.create_time.ToMicroseconds() < model.update_time.ToMicroseconds()


@pytest.mark.parametrize("token", ["x", "!!!", "bnVsbA", "WyJhIiwgImIiXQ", "A" * 5000, "\u00e4", "W10=="])
def test_a_foreign_page_token_is_refused(store: Store, token: str) -> None:
    store.publish(new())
    for call in (lambda: store.list_versions("digits", 1, token), lambda: store.list_models("", {}, 1, token)):
        with pytest.raises(InvalidArgument) as raised:
            call()
        assert raised.value.field == "page_token"


def test_a_token_belongs_to_its_question(store: Store) -> None:
    for name in ("a", "b"):
        for _ in range(2):
            store.publish(new(name))
    _, token = store.list_versions("a", 1, "")
    _, models_token = store.list_models("", {}, 1, "")
    for call in (
        lambda: store.list_versions("b", 1, token),
        lambda: store.list_versions("a", 1, models_token),
        lambda: store.list_models("", {"x": "y"}, 1, models_token),
        lambda: store.list_models("b", {}, 1, models_token),
    ):
        with pytest.raises(InvalidArgument):
            call()
    for size in (-1, 1001):
        with pytest.raises(InvalidArgument, match="page_size"):
            store.list_models("", {}, size, "")


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_an_alias_moves_only_as_expected(store: Store) -> None:
    for _ in range(3):
        store.publish(new())
    assert store.set_alias("digits", "prod", 1, 0) == 0
    with pytest.raises(Conflict, match="points at version 1"):
        store.set_alias("digits", "prod", 2, 0)
    with pytest.raises(Conflict):
        store.set_alias("digits", "prod", 2, 3)
    assert store.set_alias("digits", "prod", 2, 1) == 1
    assert store.set_alias("digits", "prod", 2, 2) == 2
    assert store.set_alias("digits", "prod", 3, None) == 2
    with pytest.raises(Conflict, match="does not exist"):
        store.set_alias("digits", "new", 3, 1)
    with pytest.raises(NotFound):
        store.set_alias("digits", "prod", 9, None)
    with pytest.raises(NotFound):
        store.set_alias("none", "prod", 1, None)
    assert store.get("digits", "prod").version == 3
    assert list(store.get("digits", 3).aliases) == ["prod"]
    with pytest.raises(Conflict):
        store.delete_alias("digits", "prod", 1)
    store.delete_alias("digits", "prod", 3)
    with pytest.raises(NotFound):
        store.get("digits", "prod")
    with pytest.raises(NotFound):
        store.delete_alias("digits", "prod", None)


def test_of_parallel_moves_with_one_expectation_exactly_one_wins(store: Store) -> None:
    for _ in range(11):
        store.publish(new())
    store.set_alias("digits", "prod", 11, None)
    barrier = threading.Barrier(10)

    def move(number: int) -> int | None:
        barrier.wait()
        try:
            store.set_alias("digits", "prod", number, 11)
        except Conflict:
            return None
        return number

    with ThreadPoolExecutor(10) as pool:
        winners = [number for number in pool.map(move, range(1, 11)) if number]
    assert len(winners) == 1
    assert store.get("digits", "prod").version == winners[0]


def test_what_an_alias_names_cannot_be_deleted(store: Store) -> None:
    store.publish(new())
    for alias in ("prod", "canary"):
        store.set_alias("digits", alias, 1, None)
    with pytest.raises(InUse, match="'canary', 'prod'"):
        store.delete("digits", 1)
    for alias in ("prod", "canary"):
        store.delete_alias("digits", alias, None)
    store.delete("digits", 1)


# --- deployments ------------------------------------------------------------------------------------------------------


def plan_of(deployments: DeploymentStore, name: str = "digits") -> dict[int, tuple[int, bool]]:
    found = deployments.read_all().get(name)
    return {} if found is None else {n: (w.replicas, w.retiring) for n, w in found.plan.versions.items()}


def test_deploying_retires_the_others(store: Store, deployments: DeploymentStore) -> None:
    for _ in range(3):
        store.publish(new())
    first = deployments.deploy("digits", 1, Wanted(2), keep_others=False)
    assert (first.default_version, first.generation, [v.version for v in first.versions]) == (1, 1, [1])
    second = deployments.deploy("digits", None, Wanted(1), keep_others=False)
    assert (second.default_version, second.generation) == (3, 2)
    assert plan_of(deployments) == {1: (2, True), 3: (1, False)}
    third = deployments.deploy("digits", 2, Wanted(4), keep_others=True)
    assert third.default_version == 3
    assert plan_of(deployments) == {1: (2, True), 2: (4, False), 3: (1, False)}


def test_deploying_the_same_again_changes_nothing(store: Store, deployments: DeploymentStore) -> None:
    store.publish(new())
    store.set_alias("digits", "prod", 1, None)
    first = deployments.deploy("digits", "prod", Wanted(2), keep_others=False)
    assert deployments.deploy("digits", 1, Wanted(2), keep_others=False) == first
    assert deployments.deploy("digits", 1, Wanted(3), keep_others=False).generation == first.generation + 1


def test_the_record_holds_what_the_cluster_needs(store: Store, deployments: DeploymentStore) -> None:
    for _ in range(2):
        store.publish(new())
    store.set_alias("digits", "prod", 1, None)
    store.set_alias("digits", "next", 2, None)
    shown = deployments.deploy("digits", 1, Wanted(2), keep_others=False)
    deployed = deployments.read_all()["digits"]
    record = deployed.record
    (wanted,) = record.versions
    assert (wanted.version, wanted.replicas, wanted.memory_bytes, wanted.engine) == (1, 2, 1000, "onnx")
    assert wanted.manifest_digest == f"sha256:{1:064x}"
    assert dict(record.aliases) == {"prod": 1}
    assert message(deployed) == shown


def test_options_are_kept_shown_and_changed_in_place(store: Store, deployments: DeploymentStore) -> None:
    manifest = new().manifest
    manifest.placement.selector["zone"] = "a"
    for _ in range(2):
        store.publish(replace(new(), manifest=manifest))
    scaling = models_pb2.Scaling(min_replicas=1, max_replicas=4, outstanding=2.5)
    scaling.schedule.add(days=["mon"], begin="08:00", end="18:00", replicas=2)
    asked = Wanted(
        1,
        scaling=scaling.SerializeToString(deterministic=True),
        placement=manifest_pb2.Placement(pinned=True).SerializeToString(),
        tenant="acme",
    )
    shown = deployments.deploy("digits", 1, asked, keep_others=False)
    (version,) = shown.versions
    assert (version.replicas, version.scaling, version.tenant) == (1, scaling, "acme")
    assert version.placement == manifest_pb2.Placement(pinned=True)
    (wanted,) = deployments.read_all()["digits"].record.versions
    assert (wanted.replicas, wanted.scaling, wanted.tenant) == (1, scaling, "acme")
    assert wanted.placement == version.placement
    assert deployments.deploy("digits", 1, asked, keep_others=False) == shown
    kept = deployments.deploy("digits", 2, None, keep_others=True)
    assert [(v.scaling, v.tenant) for v in kept.versions] == [(scaling, "acme")] * 2
    plain = deployments.deploy("digits", 1, Wanted(3), keep_others=True)
    assert plain.generation == shown.generation + 2
    assert not plain.versions[0].HasField("scaling") and not plain.versions[0].HasField("placement")
    first, second = deployments.read_all()["digits"].record.versions
    assert (first.placement, first.tenant, first.HasField("scaling")) == (manifest.placement, "", False)
    assert second.scaling == scaling


def test_an_empty_place_takes_back_what_the_manifest_asks(store: Store, deployments: DeploymentStore) -> None:
    manifest = new().manifest
    manifest.placement.selector["zone"] = "a"
    store.publish(replace(new(), manifest=manifest))
    shown = deployments.deploy("digits", 1, Wanted(1, placement=b""), keep_others=False)
    assert shown.versions[0].HasField("placement")
    (wanted,) = deployments.read_all()["digits"].record.versions
    assert wanted.HasField("placement") and wanted.placement == manifest_pb2.Placement()


def test_a_database_of_the_first_release_is_brought_up_with_what_it_holds(url: str) -> None:
    database = Database(url)
    database.migrate("0001")
    with database.write() as connection:
        for statement in (
            "INSERT INTO models VALUES ('digits', 0, 2, 1, 1, 1, 0, '', '', '', 'onnx', '')",
            "INSERT INTO versions VALUES ('digits', 1, :none, 'onnx', 'sha256:0', 9, '', 0, NULL)",
            "INSERT INTO deployments VALUES ('digits', 1, 0)",
            "INSERT INTO deployed_versions VALUES ('digits', 1, 2, false)",
        ):
            connection.execute(sa.text(statement), {"none": b""} if ":none" in statement else {})
    database.migrate()
    plan = DeploymentStore(database).read_all()["digits"].plan
    assert dict(plan.versions) == {1: Wanted(2)}
    database.close()


def test_moving_an_alias_of_a_deployed_version_is_news(store: Store, deployments: DeploymentStore) -> None:
    for _ in range(3):
        store.publish(new())
    deployments.deploy("digits", 1, Wanted(1), keep_others=False)

    def generation() -> int:
        return deployments.read_all()["digits"].record.generation

    before = generation()
    store.set_alias("digits", "elsewhere", 2, None)
    assert generation() == before
    store.set_alias("digits", "prod", 1, None)
    assert generation() == before + 1
    store.set_alias("digits", "prod", 1, None)
    assert generation() == before + 1
    store.set_alias("digits", "prod", 2, None)
    assert generation() == before + 2
    assert not deployments.read_all()["digits"].record.aliases
    store.delete_alias("digits", "prod", None)
    assert generation() == before + 2


def test_the_generation_never_goes_back(store: Store, deployments: DeploymentStore) -> None:
    store.publish(new())
    generation = deployments.deploy("digits", 1, Wanted(1), keep_others=False).generation
    deployments.undeploy("digits", 0)
    assert deployments.read_all() == {}
    assert deployments.deploy("digits", 1, Wanted(1), keep_others=False).generation == generation + 2


def test_undeploying(store: Store, deployments: DeploymentStore) -> None:
    for _ in range(3):
        store.publish(new())
    deployments.deploy("digits", 1, Wanted(2), keep_others=False)
    deployments.deploy("digits", 2, Wanted(2), keep_others=False)
    deployments.undeploy("digits", 3)
    assert plan_of(deployments) == {1: (2, True), 2: (2, False)}
    deployments.undeploy("digits", 2)
    assert plan_of(deployments) == {1: (2, False)}
    assert deployments.read_all()["digits"].plan.default == 1
    deployments.undeploy("digits", 1)
    deployments.undeploy("digits", 1)
    assert deployments.read_all() == {}
    with pytest.raises(NotFound):
        deployments.undeploy("none", 0)
    with pytest.raises(NotFound):
        deployments.deploy("none", None, Wanted(1), keep_others=False)
    with pytest.raises(NotFound):
        deployments.deploy("digits", 9, Wanted(1), keep_others=False)


def test_what_is_deployed_cannot_be_deleted(store: Store, deployments: DeploymentStore) -> None:
    for _ in range(2):
        store.publish(new())
    deployments.deploy("digits", 1, Wanted(1), keep_others=False)
    assert store.get("digits", 1).deployed and not store.get("digits", 2).deployed
    with pytest.raises(InUse, match="version 1 is deployed"):
        store.delete("digits", 1)
    deployments.deploy("digits", 2, Wanted(1), keep_others=False)
    with pytest.raises(InUse):
        store.delete("digits", 1)
    deployments.undeploy("digits", 1)
    store.delete("digits", 1)


def test_pruning_needs_the_generation_that_was_read(store: Store, deployments: DeploymentStore) -> None:
    for _ in range(2):
        store.publish(new())
    deployments.deploy("digits", 1, Wanted(1), keep_others=False)
    generation = deployments.deploy("digits", 2, Wanted(1), keep_others=False).generation
    assert not deployments.prune("digits", generation - 1, (1,))
    assert plan_of(deployments) == {1: (1, True), 2: (1, False)}
    assert deployments.prune("digits", generation, (1,))
    assert plan_of(deployments) == {2: (1, False)}
    assert not deployments.prune("digits", generation + 1, (2,))
    assert plan_of(deployments) == {2: (1, False)}


def test_deleting_and_deploying_at_once_never_leaves_a_deployed_version_deleted(
    store: Store, deployments: DeploymentStore
) -> None:
    for number in range(1, 11):
        store.publish(new())
        barrier = threading.Barrier(2)

        def attempt(action: Callable[[], object], barrier: threading.Barrier = barrier) -> PenstockError | None:
            barrier.wait()
            try:
                action()
            except PenstockError as error:
                return error
            return None

        with ThreadPoolExecutor(2) as pool:
            deleting = pool.submit(attempt, partial(store.delete, "digits", number))
            deploying = pool.submit(attempt, partial(deployments.deploy, "digits", number, Wanted(1), keep_others=True))
        outcome = (type(deleting.result()), type(deploying.result()))
        assert outcome in ((InUse, type(None)), (type(None), NotFound)), outcome


def test_reading_goes_on_while_somebody_writes(database: Database, store: Store) -> None:
    store.publish(new())
    with database.write() as connection:
        connection.execute(tables.models.update().values(description="not yet"))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(store.get, "digits", None).result(timeout=5).version == 1
