"""The parts of the SDK that decide: retries, readiness, what may be uploaded, and that both faces are one."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock import errors
from penstock.client import AsyncClient, Client, bundle, readiness, trace
from penstock.client.connection import Connection
from penstock.client.retry import Budget, pause_before_retry
from penstock.client.tls import Tls
from penstock.v1 import cluster_pb2 as pb
from penstock.v1 import models_pb2 as models

DOWN = errors.Unavailable("down")


# retries


def test_only_unavailable_is_tried_again_and_only_so_often() -> None:
    budget = Budget()
    assert pause_before_retry(errors.Internal("x"), 0, 2, budget, None) is None
    assert pause_before_retry(errors.DeadlineExceeded("x"), 0, 2, budget, None) is None
    assert pause_before_retry(DOWN, 2, 2, budget, None) is None
    for attempt in range(8):
        pause = pause_before_retry(DOWN, attempt, 9, budget, None)
        ceiling = min(2.0, 0.05 * 2**attempt)
        assert pause is not None
        assert ceiling / 2 <= pause <= ceiling


def test_a_pause_never_outlives_the_deadline() -> None:
    assert pause_before_retry(DOWN, 0, 2, Budget(), 0.01) is None
    patient = errors.Unavailable("down", retry_after=1.0)
    assert pause_before_retry(patient, 0, 2, Budget(), 0.9) is None
    assert pause_before_retry(patient, 0, 2, Budget(), 5) == 1.0


def test_a_budget_ends_and_is_earned_back() -> None:
    budget = Budget()
    assert [pause_before_retry(DOWN, 0, 2, budget, None) is None for _ in range(11)] == [False] * 10 + [True]
    for _ in range(11):
        budget.answered()
    assert budget.spend()
    assert not budget.spend()


# readiness


def status(**fields: Any) -> pb.ClusterStatus:
    return pb.ClusterStatus(versions=[pb.VersionStatus(name="m", version=2, **fields)])


def on_worker(*states: tuple[str, str, pb.ReplicaState.ValueType], reason: str = "", draining: bool = True) -> Any:
    picture = pb.ClusterStatus(workers=[pb.WorkerStatus(id="w1", draining=draining), pb.WorkerStatus(id="w2")])
    for name, worker, state in states:
        entry = picture.versions.add(name=name, version=1, wanted=1, unplaced_reason=reason)
        entry.replicas.add(worker=worker, state=state)
    return picture


def test_what_is_left_on_a_worker_that_should_be_empty() -> None:
    ready = pb.REPLICA_STATE_READY
    assert readiness.unmet_drain(on_worker(("a", "w2", ready)), "w1") == ""
    assert readiness.unmet_drain(on_worker(), "gone") == ""
    assert "taken the drain up" in readiness.unmet_drain(on_worker(draining=False), "w1")
    stays = on_worker(("a", "w1", ready), reason="w2 has 1 MiB free")
    assert readiness.unmet_drain(stays, "w1") == "w1: 1 replica left; a@1: stays: w2 has 1 MiB free"
    moving = on_worker(("a", "w1", ready), ("b", "w1", ready))
    moving.versions[0].replicas.add(worker="w2", state=pb.REPLICA_STATE_LOADING)
    assert readiness.unmet_drain(moving, "w1") == "w1: 2 replicas left; a@1: moves: w2 loading; b@1: moves"


def wanted(replicas: int, scaling: models.Scaling | None = None) -> models.DeployedVersion:
    return models.DeployedVersion(version=2, replicas=replicas, scaling=scaling)


def test_where_demand_moves_the_number_the_least_is_enough() -> None:
    asked = wanted(1, models.Scaling(min_replicas=1, max_replicas=4))
    assert readiness.unmet_deploy(status(wanted=3, ready=1), "m", asked, False) == ""
    assert "0 of 3 ready" in readiness.unmet_deploy(status(wanted=3), "m", asked, False)
    assert readiness.unmet_deploy(status(wanted=0), "m", wanted(0, models.Scaling(max_replicas=1)), False) == ""
    assert "taken the change up" in readiness.unmet_deploy(status(wanted=0), "m", asked, False)


def test_why_a_deployment_is_not_fulfilled() -> None:
    replicas = [
        pb.ReplicaStatus(worker="a", state=pb.REPLICA_STATE_READY),
        pb.ReplicaStatus(worker="b", state=pb.REPLICA_STATE_FAILED, reason="out of memory"),
    ]
    picture = status(wanted=3, ready=1, replicas=replicas, unplaced_reason="no worker has 2 GiB", default_version=True)
    text = "m@2: 1 of 3 ready; b failed: out of memory; not placed: no worker has 2 GiB"
    assert readiness.unmet_deploy(picture, "m", wanted(3), True) == text
    assert readiness.unmet_all(picture) == text
    assert readiness.has_failed(picture.versions[0])


@pytest.mark.parametrize(
    "picture",
    [pb.ClusterStatus(), status(wanted=1, ready=1, default_version=True), status(wanted=2, ready=2)],
    ids=["not there", "old number of replicas", "not the default yet"],
)
def test_an_old_picture_is_not_taken_for_the_answer(picture: pb.ClusterStatus) -> None:
    assert "taken the change up" in readiness.unmet_deploy(picture, "m", wanted(2), True)


def test_fulfilled() -> None:
    assert readiness.unmet_deploy(status(wanted=2, ready=2, default_version=True), "m", wanted(2), True) == ""
    assert readiness.unmet_deploy(status(wanted=2, ready=2), "m", wanted(2), False) == ""
    assert readiness.unmet_all(pb.ClusterStatus()) == ""
    assert readiness.unmet_all(pb.ClusterStatus(), "m") == "m is not deployed"
    assert readiness.unmet_undeploy(pb.ClusterStatus(), "m", 0) == ""
    assert readiness.unmet_undeploy(status(wanted=1), "m", 3) == ""
    assert readiness.unmet_undeploy(status(wanted=1), "m", 2) != ""


def test_a_state_of_a_newer_release_has_a_name() -> None:
    assert readiness.state_label(99) == "state 99"
    assert readiness.state_label(pb.REPLICA_STATE_READY) == "ready"


# what may be uploaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "data").mkdir(parents=True)
    (made / "m.onnx").write_bytes(b"x")
    (made / "data" / "labels.txt").write_text("a")
    (tmp_path / "secret").write_text("key")
    return made


def write(folder: Path, files: str) -> Path:
    path = folder / "model.yaml"
    path.write_text(f"name: m\nfiles: {files}\n")
    return path


def test_a_bundle_is_a_manifest_and_its_files(folder: Path) -> None:
    path = write(folder, "{model: m.onnx, labels: data/labels.txt}")
    for given in (path, folder, str(folder)):
        read = bundle.read(given)
        assert (read.name, list(read.files)) == ("m", ["model", "labels"])
        assert read.files["labels"].read_text() == "a"


@pytest.mark.parametrize(
    "name", ["../secret", "data/../../secret", "link", "linked/secret", "/etc/hosts", "none", "data", ""]
)
def test_nothing_outside_the_folder_is_read(folder: Path, name: str) -> None:
    os.symlink(folder.parent / "secret", folder / "link")
    os.symlink(folder.parent, folder / "linked")
    with pytest.raises(errors.InvalidManifest) as caught:
        bundle.read(write(folder, f"{{model: '{name}'}}"))
    assert caught.value.field == "files.model"


def test_a_link_inside_the_folder_is_fine(folder: Path) -> None:
    os.symlink("m.onnx", folder / "link.onnx")
    assert bundle.read(write(folder, "{model: link.onnx}")).files["model"].name == "m.onnx"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "line"),
        ("- a", "mapping"),
        ("name: m", "files"),
        ("files: {model: 3}", "path relative"),
        ("files: !!python/object/apply:os.system ['true']", "line 1"),
    ],
)
def test_what_is_no_manifest(folder: Path, content: str, message: str) -> None:
    (folder / "model.yaml").write_text(content)
    with pytest.raises(errors.InvalidManifest, match=message):
        bundle.read(folder)


def test_which_manifest_is_meant(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidManifest, match="penstock init"):
        bundle.read(folder)
    with pytest.raises(errors.InvalidManifest, match="no such file"):
        bundle.read(tmp_path / "nowhere")
    write(folder, "{model: m.onnx}")
    (folder / "model.json").write_text('{"files": {"model": "m.onnx"}}')
    with pytest.raises(errors.InvalidManifest, match="more than one"):
        bundle.read(folder)
    assert bundle.read(folder / "model.json").name == ""
    (folder / "model.json").write_text("{")
    with pytest.raises(errors.InvalidManifest, match="line 1"):
        bundle.read(folder / "model.json")
    (folder / "model.yaml").write_bytes(b"\xff" * 10)
    with pytest.raises(errors.InvalidManifest, match="UTF-8"):
        bundle.read(folder / "model.yaml")
    (folder / "model.yaml").write_bytes(b" " * (bundle.MAX_MANIFEST_BYTES + 1))
    with pytest.raises(errors.InvalidManifest, match="1 MiB"):
        bundle.read(folder / "model.yaml")


def test_json_manifests_need_no_yaml_and_yaml_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    write(folder, "{model: m.onnx}")
    with pytest.raises(errors.InvalidManifest, match=r"penstock\[cli\]"):
        bundle.read(folder / "model.yaml")
    (folder / "model.json").write_text('{"name": "m", "files": {"model": "m.onnx"}}')
    assert bundle.read(folder / "model.json").name == "m"


# both faces


def public(cls: type) -> dict[str, Any]:
    return {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}


def test_both_faces_have_the_same_calls_with_the_same_arguments() -> None:
    theirs, ours = public(AsyncClient), public(Client)
    assert theirs.keys() == ours.keys()
    for name in [*theirs, "__init__"]:
        waits, answers = getattr(AsyncClient, name), getattr(Client, name)
        if isinstance(waits, property):
            continue
        expected = [(p.name, p.kind, p.default) for p in inspect.signature(waits).parameters.values()]
        assert [(p.name, p.kind, p.default) for p in inspect.signature(answers).parameters.values()] == expected, name
        assert not inspect.iscoroutinefunction(answers)


def test_where_the_gateway_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_ADDRESS", raising=False)
    assert AsyncClient().address == "127.0.0.1:8001"
    monkeypatch.setenv("PENSTOCK_ADDRESS", "there:9")
    assert AsyncClient().address == "there:9"
    assert AsyncClient("here:1").address == "here:1"
    for wrong in ("http://x:1", "nowhere", "x:port"):
        with pytest.raises(errors.InvalidArgument):
            AsyncClient(wrong)


def test_the_credential_comes_from_the_environment_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TOKEN", "t1")

    def sent(token: str | None) -> Any:
        return dict(Connection(None, token, None, 0, lambda: None, Tls.of("", "", "")).headers()).get("authorization")

    assert sent(None) == "Bearer t1"
    assert sent("t2") == "Bearer t2"
    assert sent("") is None


def test_trace_context_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    assert trace.current_traceparent() is None
    assert "opentelemetry" not in sys.modules


def test_trace_context_is_the_current_span() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    assert trace.current_traceparent() is None
    with TracerProvider().get_tracer("tests").start_as_current_span("s") as span:
        context = span.get_span_context()
        flags = int(context.trace_flags)
        assert trace.current_traceparent() == f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
        assert flags & 1
