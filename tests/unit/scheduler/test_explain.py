"""Explanations: every verdict has its reason, and every remedy is one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from penstock.v1 import cluster_pb2 as pb
from services.scheduler import placement
from services.scheduler.placement import Planner, plan
from services.scheduler.snapshot import ClusterSnapshot, Needs

from .clusters import MIB, carried_out, cluster, clusters, wanted, with_ready, worker


def explain(snapshot: ClusterSnapshot, name: str, version: int = 0) -> list[pb.PlacementExplanation]:
    planner = Planner()
    planner.known.learn(snapshot)
    planner.plan()
    return placement.explain(planner, name, version)


def settled(snapshot: ClusterSnapshot) -> ClusterSnapshot:
    return with_ready(carried_out(snapshot, plan(snapshot)))


def test_every_worker_has_a_verdict_with_a_reason() -> None:
    gpu = Needs(devices=1, device_bytes=60 * MIB, selector=(("disk", "ssd"),))
    ssd = {"disk": "ssd"}
    workers = [
        worker("full", 100 * MIB, gpus=(50 * MIB, 10 * MIB), labels=ssd),
        worker("hdd", 100 * MIB, gpus=(80 * MIB,)),
        worker("bare", 100 * MIB, labels=ssd),
        worker("kept", 100 * MIB, gpus=(80 * MIB,), labels=ssd, taints=("batch",)),
        worker("tiny", 5 * MIB, gpus=(80 * MIB,), labels=ssd),
        worker("other", 100 * MIB, gpus=(80 * MIB,), labels=ssd, engines=("torch",)),
    ]
    (found,) = explain(cluster([wanted("a", memory=10 * MIB, needs=gpu)], workers), "a")
    assert (found.wanted, found.placed, found.needs) == (1, 0, "10 MiB and 1 gpu (60 MiB each) and engine onnx")
    assert [(v.worker, v.obstacle, v.subject, v.lacking_bytes) for v in found.workers] == [
        ("bare", "devices", "gpu", 0),
        ("full", "device-memory", "gpu0", 10 * MIB),
        ("hdd", "selector", "disk=ssd", 0),
        ("kept", "taint", "batch", 0),
        ("other", "engine", "onnx", 0),
        ("tiny", "memory", "", 5 * MIB),
    ]
    assert list(found.remedies) == [
        "free 5 MiB on tiny",
        "give hdd the label disk=ssd: it has room",
        "tolerate taint batch: kept has room",
        "install engine onnx on other: it has room",
        "add a worker with engine onnx, 10 MiB and 1 gpu (60 MiB each) free, label disk=ssd",
    ]


def test_what_could_go_is_named() -> None:
    before = settled(cluster([wanted("a", memory=40 * MIB), wanted("b", memory=50 * MIB)], [worker("w1", 100 * MIB)]))
    (found,) = explain(replace(before, wanted=(*before.wanted, wanted("c", memory=45 * MIB))), "c")
    assert found.remedies[0] == "free 35 MiB on w1: a@1 has 40 MiB there"


def test_why_here_tells_kept_from_chosen_and_from_leaving() -> None:
    snapshot = cluster([wanted("a"), wanted("b", memory=5, needs=Needs(affinity=frozenset({"a"})))], [worker("w1")])
    assert explain(snapshot, "a")[0].workers[0].reason.startswith("chosen: no worker with room had fewer copies")
    assert explain(snapshot, "b")[0].workers[0].reason.startswith("chosen: a runs here")
    there = settled(snapshot)
    assert explain(there, "a")[0].workers[0].reason.startswith("kept: it was here before")
    draining = replace(there, workers={"w1": worker("w1", draining=True), "w2": worker("w2")})
    leaving, chosen = explain(draining, "a")[0].workers
    assert (leaving.outcome, leaving.obstacle) == (pb.PLACEMENT_OUTCOME_LEAVING, "draining")
    assert chosen.outcome == pb.PLACEMENT_OUTCOME_HERE
    assert explain(snapshot, "nobody") == [] == explain(snapshot, "a", 2)


@given(clusters())
@settings(max_examples=100, deadline=None)
def test_verdicts_agree_with_the_plan(snapshot: ClusterSnapshot) -> None:
    planned = plan(snapshot)
    for name in {item.id.name for item in snapshot.wanted}:
        for found in explain(snapshot, name):
            at = {
                worker: replica.leaving
                for worker, replicas in planned.assignments.items()
                for replica in replicas
                if replica.id == (found.name, found.version) and worker in snapshot.workers
            }
            for verdict in found.workers:
                assert verdict.reason
                if verdict.outcome == pb.PLACEMENT_OUTCOME_HERE:
                    assert at[verdict.worker] is False
                elif verdict.outcome == pb.PLACEMENT_OUTCOME_LEAVING:
                    assert at[verdict.worker] is True
                elif verdict.outcome == pb.PLACEMENT_OUTCOME_NOT_HERE:
                    assert verdict.worker not in at and verdict.obstacle
            missing = found.placed < found.wanted
            assert bool(found.remedies) == missing
