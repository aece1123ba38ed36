"""What the registry's records of models promise, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from penstock.errors import AlreadyExists, Conflict, InUse, InvalidArgument, NotFound, Unavailable
from penstock.v1 import models_pb2
from services.registry import tables
from services.registry.database import Database
from services.registry.store import MAX_NUMBER, Store
from tests.harness.registry import DIGEST, new, versions_of

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
