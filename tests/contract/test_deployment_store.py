"""What the registry's records of deployments promise, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import sqlalchemy as sa

from penstock.errors import InUse, NotFound, PenstockError
from penstock.v1 import manifest_pb2, models_pb2
from services.registry import tables
from services.registry.database import Database
from services.registry.deployment_store import DeploymentStore, message
from services.registry.deployments import Wanted
from services.registry.store import Store
from tests.harness.registry import new


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
            assert pool.submit(store.get, "digits", None).result(timeout=30).version == 1
