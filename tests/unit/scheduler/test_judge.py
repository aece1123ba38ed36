"""Density and scaling as a whole: demand in, assignments out, with workers that do what they are told."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from penstock.internal.v1.records_pb2 import WorkerRecord
from penstock.v1 import cluster_pb2 as pb
from penstock.v1.models_pb2 import ScaleWindow, Scaling
from services.scheduler.demand import Said
from services.scheduler.judge import MOST_TRIED, Estimate
from services.scheduler.numbers import policy_of
from services.scheduler.residency import IDLE, RESIDENCE
from services.scheduler.scaling import Window
from services.scheduler.snapshot import VersionId

from .world import MIB, World, version

A = VersionId("a", 1)


def seconds(count: int) -> Duration:
    return Duration(seconds=count)


def serve(world: World, name: str, length: float, **said: float) -> None:
    """Calls a model for a while, as one gateway says."""
    for _ in range(int(length)):
        world.report({name: Said(**said)})  # type: ignore[arg-type]
        world.step(1.0)


def test_a_cold_version_is_loaded_when_somebody_waits_and_goes_when_nobody_has_called_for_long() -> None:
    world = World("w1")
    world.on_demand("a", idle_time=seconds(60), fall_time=seconds(30))  # type: ignore[arg-type]
    assert world.step() == {} and world.number("a") == 0
    world.report({"a": 1})
    assert world.step() == {"w1": ["a"]}
    serve(world, "a", 20, rate=1.0)
    gone = world.now + 60
    while world.told == {"w1": ["a"]}:
        assert world.now < gone + 30
        world.report()
        world.step(1.0)
    assert world.now >= gone and world.number("a") == 0
    wish = world.judge.numbers.wish(A)
    assert wish is not None and wish.reason == "fallen"
    world.report({"a": 1})
    assert world.step() == {"w1": ["a"]}


def test_replicas_follow_the_demand_up_at_once_and_down_late() -> None:
    world = World("w1", "w2", "w3", "w4")
    scaling = Scaling(min_replicas=1, max_replicas=3, outstanding=4, fall_time=seconds(60))
    world.deploy("a", version(scaling=scaling))
    world.step()
    assert world.number("a") == 1
    serve(world, "a", 3, outstanding=7.0)
    assert world.number("a") == 2
    serve(world, "a", 6, outstanding=70.0)
    assert world.number("a") == 3 and sum(map(len, world.told.values())) == 3
    serve(world, "a", 40, outstanding=1.0)
    assert world.number("a") == 3
    serve(world, "a", 60, outstanding=1.0)
    assert world.number("a") == 1 and sum(map(len, world.told.values())) == 1


def test_a_new_leader_changes_nothing_until_it_knows_enough() -> None:
    world = World("w1", "w2", "w3")
    scaling = Scaling(min_replicas=0, max_replicas=3, outstanding=4, fall_time=seconds(60), idle_time=seconds(60))
    world.deploy("a", version(scaling=scaling))
    world.report({"a": Said(outstanding=12)})
    world.step()
    assert world.number("a") == 3
    follower = World("w1", "w2", "w3")
    follower.leading = False
    follower.deploy("a", version(scaling=scaling))
    for record in world.assignments.values():
        follower.judge.intake.assignment(None, record)
    follower.assignments = dict(world.assignments)
    follower.step()
    assert follower.number("a") == 3
    follower.leading = True
    for _ in range(40):
        follower.report()
        follower.step(1.0)
        assert follower.number("a") == 3
    for _ in range(60):
        follower.report()
        follower.step(1.0)
    assert follower.number("a") == 0


def test_an_emptied_store_does_not_make_a_number_fall() -> None:
    world = World("w1", "w2", "w3")
    world.deploy("a", version(scaling=Scaling(max_replicas=3, outstanding=4)))
    world.report({"a": Said(outstanding=12)})
    before = world.step()
    world.report()
    world.leading = False  # as for the view's grace
    for record in world.assignments.values():
        world.judge.intake.assignment(record, None)
    world.assignments.clear()
    world.judge.intake.deployment(world.deployments["a"], None)
    world.plan()
    world.judge.intake.deployment(None, world.deployments["a"])
    world.plan()
    world.leading = True
    world.report()
    assert world.step(1.0) == before and world.number("a") == 3


def test_without_any_report_nothing_falls_ever() -> None:
    world = World("w1", "w2")
    world.deploy("a", version(scaling=Scaling(max_replicas=2, outstanding=4, fall_time=seconds(5))))
    world.report({"a": Said(outstanding=8)})
    world.step()
    for _ in range(100):
        world.step(60.0)
    assert world.number("a") == 2


def test_a_schedule_is_a_part_of_the_week() -> None:
    night = ScaleWindow(days=["sun"], begin="22:00", end="06:00", replicas=2)
    day = ScaleWindow(begin="08:00", end="09:30", replicas=3)
    odd = ScaleWindow(begin="soon", end="later", replicas=9)
    policy = policy_of(Scaling(max_replicas=4, schedule=[night, day, odd]))
    week = 7 * 24 * 60
    assert Window(week - 120, week, 2) in policy.windows and Window(0, 360, 2) in policy.windows
    assert sum(window.replicas == 3 for window in policy.windows) == 7 and len(policy.windows) == 9
    world = World("w1", "w2", "w3")
    world.deploy("a", version(scaling=Scaling(max_replicas=4, schedule=[day])))
    world.step()
    assert world.number("a") == 0
    world.minute = 8 * 60
    world.step(5.0)
    wish = world.judge.numbers.wish(A)
    assert world.number("a") == 3 and wish is not None and wish.reason == "schedule"


def test_the_version_before_serves_until_an_on_demand_one_is_ready_and_never_for_longer() -> None:
    world = World("w1", "w2")
    scaling = Scaling(max_replicas=1)
    world.deploy("a", version(1))
    world.step()
    world.deploy("a", version(1, retiring=True), version(2, scaling=scaling))
    world.step(1.0, ready=False)
    assert world.number("a", 2) == 1 and sum(map(len, world.told.values())) == 2
    world.obey()
    world.step(1.0)
    assert [replica.version for record in world.assignments.values() for replica in record.replicas] == [2]
    cold = World("w1")
    cold.deploy("a", version(1, retiring=True), version(2, scaling=scaling))
    assert cold.step() == {} and cold.number("a", 2) == 0


def crowd(world: World) -> None:
    """Calls a and b, which then fill the worker, b last."""
    for name in ("a", "b"):
        world.report({name: 1})
        world.step()
        serve(world, name, 2, rate=1.0)


def test_of_more_models_than_fit_the_least_recently_used_makes_room_and_comes_back_when_called() -> None:
    world = World("w1")
    world.on_demand("a", "b", "c")
    crowd(world)
    assert world.told == {"w1": ["a", "b"]}
    world.report()
    world.step(RESIDENCE)
    world.report({"c": 1})
    assert world.step() == {"w1": ["b", "c"]} and world.number("a") == 0
    serve(world, "c", RESIDENCE, rate=1.0)
    assert world.told == {"w1": ["b", "c"]}
    world.report({"a": 1, "c": Said(rate=1.0)})
    assert world.step() == {"w1": ["a", "c"]}


def test_nobody_is_pushed_out_who_is_in_use_or_came_only_now_or_is_pinned_or_has_a_least() -> None:
    world = World("w1")
    world.on_demand("c")
    world.on_demand("a", "b")
    crowd(world)
    world.report({"c": 1})
    assert world.step() == {"w1": ["a", "b"]}
    version_c = VersionId("c", 1)
    waits = world.judge.estimates([version_c], world.now, leading=True)[version_c]
    assert not waits.obstacle
    in_use = {"a": Said(outstanding=1.0), "b": Said(outstanding=1.0)}
    for _ in range(int(RESIDENCE) + 1):
        world.report({"c": 1, **in_use})
        assert world.step(1.0) == {"w1": ["a", "b"]}
    assert "no worker has room" in world.judge.estimates([version_c], world.now, leading=True)[version_c].obstacle
    world.deploy("a", version(scaling=Scaling(max_replicas=1), pinned=True))
    world.deploy("b", version(scaling=Scaling(min_replicas=1, max_replicas=1)))
    for _ in range(2 * int(RESIDENCE)):
        world.report({"c": 1})
        assert world.step(1.0) == {"w1": ["a", "b"]}
    world.deploy("b", version(scaling=Scaling(max_replicas=1)))
    world.report({"c": 1})
    assert world.step(1.0) == {"w1": ["a", "c"]}


def test_no_more_goes_than_is_needed_and_a_model_that_can_never_fit_takes_nobody_s_place() -> None:
    world = World("w1", "w2")
    world.on_demand("a", "b", "d", "e")
    world.on_demand("big", memory=90)
    world.on_demand("huge", memory=110)
    for name in ("a", "b", "d", "e"):
        world.report({name: 1})
        world.step(1.0)
    before = world.told
    assert sorted(name for names in before.values() for name in names) == ["a", "b", "d", "e"]
    world.report()
    world.step(RESIDENCE)
    world.report({"huge": 1})
    assert world.step(1.0) == before
    world.report({"big": 1})
    assert sorted(world.step(1.0).values()) == sorted(
        [["big"], next(names for names in before.values() if "e" in names)]
    )


def test_what_can_never_fit_keeps_nobody_else_from_finding_room() -> None:
    world = World("w1")
    world.on_demand("a", "b", "z")
    huge = [f"huge{number:02}" for number in range(2 * MOST_TRIED)]
    world.on_demand(*huge, memory=200)
    crowd(world)
    world.report()
    world.step(RESIDENCE)
    for _ in range(5):
        world.report(dict.fromkeys(huge, 1))
        world.step(1.0)
    waiting = [VersionId(name, 1) for name in huge]
    world.report({**dict.fromkeys(huge, 1), "z": 1})
    for _ in range(3):
        world.step(1.0)
    assert world.told == {"w1": ["b", "z"]}
    told = world.judge.estimates(waiting, world.now, leading=True)
    assert all(told[version].obstacle for version in waiting)


def test_a_deployed_version_is_worth_more_than_what_nobody_calls() -> None:
    world = World("w1")
    world.on_demand("a", "b")
    crowd(world)
    world.report()
    world.step(RESIDENCE)
    world.deploy("c", version())
    assert world.step(1.0) == {"w1": ["b", "c"]}


def test_models_that_are_called_in_turn_do_not_push_each_other_out_at_every_call() -> None:
    world = World("w1")
    names = ("a", "b", "c")
    world.on_demand(*names)
    loads = 0
    for turn in range(120):
        before = world.told.get("w1", [])
        world.report({names[turn % 3]: 1})
        now = world.step(1.0).get("w1", [])
        loads += len(set(now) - set(before))
    assert loads <= 2 + 120 / IDLE


def test_who_waits_is_told_for_how_long_or_why_in_vain() -> None:
    world = World("w1")
    world.on_demand("a", memory=40)
    world.on_demand("b", memory=200)
    odd = version(engine="torch", scaling=Scaling(max_replicas=1))
    world.deploy("odd", odd)
    loaded = pb.REPLICA_STATE_READY
    world.report({"a": 1})
    world.step()
    (record,) = world.replicas.values()
    record.load_seconds = 8.0
    world.judge.intake.replica(None, record)
    assert world.judge.estimates([A], world.now, leading=True) == {}
    world.obey(pb.REPLICA_STATE_LOADING)
    world.now += 3
    assert world.judge.estimates([A], world.now, leading=True) == {A: Estimate(5.0)}
    world.now += 30
    assert world.judge.estimates([A], world.now, leading=True) == {A: Estimate(0.5)}
    world.obey(pb.REPLICA_STATE_FAILED, "its file is damaged")
    assert world.judge.estimates([A], world.now, leading=True)[A].obstacle.endswith("its file is damaged")
    world.obey(loaded)
    world.report({"b": 1, "odd": 1, "a": Said(rate=1.0)})
    world.step()
    versions = [VersionId("b", 1), VersionId("odd", 1), VersionId("nobody", 1)]
    found = world.judge.estimates(versions, world.now, leading=True)
    assert [found[version].obstacle[:23] for version in versions[:2]] == [
        "no worker has room for ",
        "no worker can run it: i",
    ]
    assert versions[2] not in found
    assert not any(answer.obstacle for answer in world.judge.estimates(versions, world.now, leading=False).values())


def test_a_gray_replica_leaves_once_another_is_ready() -> None:
    world = World("w1", "w2", "w3")
    world.deploy("a", version(replicas=1))
    world.step()
    (at,) = [worker for worker, names in world.told.items() if names]
    other = "w2" if at == "w1" else "w1"
    for _ in range(12):
        world.report({"a": Said(rate=1.0)}, gray=(("a", at),))
        world.step(1.0, ready=False)
    assert world.told == {at: ["-a"], other: ["a"]}
    world.obey()
    world.step(1.0)
    assert world.told == {at: [], other: ["a"]}


def test_a_worker_that_was_gray_is_a_worker_again_once_it_has_been_started_anew() -> None:
    world = World("w1", "w2", "w3")
    world.deploy("a", version(replicas=3, memory=40))
    world.step()
    for _ in range(12):
        world.report({"a": Said(rate=1.0)}, gray=(("a", "w1"),))
        world.step(1.0)
    world.step()
    everywhere = {"w1": ["a"], "w2": ["a"], "w3": ["a"]}
    assert world.told != everywhere
    record = WorkerRecord(id="w1", memory_bytes=100 * MIB, engines=["onnx"])
    record.start_time.FromSeconds(60)
    world.judge.intake.worker(WorkerRecord(id="w1", memory_bytes=100 * MIB, engines=["onnx"]), record)
    world.report({"a": Said(rate=1.0)}, gray=(("a", "w1"),))  # the news has not reached the gateway
    assert world.step() == everywhere


@pytest.mark.parametrize("gateways", [3, 4])
def test_one_gateway_alone_moves_nothing(gateways: int) -> None:
    world = World("w1", "w2", "w3")
    world.deploy("a", version(replicas=1))
    before = world.step()
    (at,) = [worker for worker, names in before.items() if names]
    for _ in range(20):
        world.report({"a": Said(rate=1.0)}, gateway="g0", gray=(("a", at),))
        for number in range(1, gateways):
            world.report({"a": Said(rate=1.0)}, gateway=f"g{number}")
        assert world.step(1.0) == before
