"""When a worker lets go of callers."""

from __future__ import annotations

from services.worker.fence import ANSWER_SECONDS, Fence, Step


def test_a_worker_that_the_cluster_sees_lets_go_of_nobody() -> None:
    fence = Fence()
    assert {fence.look(float(now), present=True) for now in range(100)} == {Step.NOTHING}


def test_callers_are_asked_and_given_time_for_as_long_as_the_lease_is_over() -> None:
    fence = Fence()
    assert fence.look(0.0, present=False) is Step.ASK
    assert fence.look(ANSWER_SECONDS - 0.1, present=False) is Step.NOTHING
    assert fence.look(ANSWER_SECONDS, present=False) is Step.RESET
    assert fence.look(ANSWER_SECONDS + 0.1, present=False) is Step.ASK


def test_a_lease_that_is_back_in_time_spares_them() -> None:
    fence = Fence()
    assert fence.look(0.0, present=False) is Step.ASK
    assert fence.look(1.0, present=True) is Step.NOTHING
    assert fence.look(ANSWER_SECONDS, present=False) is Step.ASK
