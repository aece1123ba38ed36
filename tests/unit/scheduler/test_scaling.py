"""Scaling: each policy, the bounds, and that the number does not swing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.scaling import Policy, Sample, Window, desired, ratio

QUIET = Sample(0.0, 0.0, 0.0, 0.0, 0.0, 2.0)


def past(seconds: int = 700, /, **seen: float) -> list[Sample]:
    """The same every 5 s, up to now (time 0)."""
    return [replace(QUIET, time=float(-age), **seen) for age in range(seconds, -1, -5)]


@pytest.mark.parametrize(
    ("policy", "seen", "wanted", "reason"),
    [
        (Policy(most=9, outstanding=4), {"outstanding": 18.0}, 5, "outstanding"),
        (Policy(most=9, rate=10), {"rate": 61.0}, 7, "rate"),
        (Policy(most=9, utilisation=0.5), {"utilisation": 0.9}, 4, "utilisation"),
        (Policy(most=9, queue_seconds=0.1), {"queue_seconds": 0.6, "rate": 1.0}, 3, "queue"),
        (Policy(most=9, queue_seconds=0.1), {"queue_seconds": 60.0, "rate": 1.0}, 4, "queue"),
        (Policy(most=9, outstanding=4, rate=10), {"outstanding": 18.0, "rate": 61.0}, 7, "rate"),
        (Policy(most=3, outstanding=4), {"outstanding": 18.0}, 3, "most, though outstanding asks for more"),
        (Policy(least=4, most=9, rate=10), {"rate": 1.0}, 4, "least"),
        (Policy(most=9, rate=10), {"rate": 21.0}, 2, "enough"),
        (Policy(most=9, rate=10), {"rate": 5.0}, 1, "fallen"),
        (Policy(least=0, most=9, rate=10), {}, 0, "fallen"),
    ],
)
def test_each_policy_asks_and_the_most_demanding_wins(
    policy: Policy, seen: dict[str, float], wanted: int, reason: str
) -> None:
    answer = desired(policy, past(700, **seen), 0.0, 2)
    assert (answer.replicas, answer.reason) == (wanted, reason)


def test_a_schedule_lifts_the_floor_while_it_says_so() -> None:
    policy = Policy(most=9, rate=10, windows=(Window(60, 120, 5),))
    assert desired(policy, past(), 0.0, 2, minute=60).replicas == 5
    assert desired(policy, past(), 0.0, 2, minute=120).replicas == 1


def test_it_falls_only_to_the_most_of_the_recent_past() -> None:
    policy = Policy(most=9, rate=10, fall_seconds=100)
    samples = [replace(s, rate=45.0 if s.time == -90 else 5.0) for s in past()]
    assert desired(policy, samples, 0.0, 8).replicas == 5
    assert desired(policy, samples, 20.0, 8).reason == "fallen"
    assert desired(policy, past(50, rate=5.0), 0.0, 8).reason == "too early to fall"


def test_zero_needs_idleness_and_a_call_ends_it() -> None:
    policy = Policy(least=0, most=9, rate=10, fall_seconds=50, idle_seconds=300)
    once = [replace(s, rate=1.0 if s.time == -200 else 0.0) for s in past()]
    assert desired(policy, once, 0.0, 1).replicas == 1
    assert desired(policy, past(), 0.0, 1).replicas == 0
    assert desired(policy, [], 0.0, 0).replicas == 0
    assert desired(policy, past(), 0.0, 0).replicas == 0
    assert desired(policy, past(outstanding=1.0), 0.0, 0).reason == "called while at zero"


def test_the_usual_rule_of_utilisation() -> None:
    assert ratio(0.5, past(utilisation=0.9), 0.0, 2) == 4
    assert ratio(0.5, past(utilisation=0.53), 0.0, 2) == 2
    assert ratio(0.5, [replace(s, utilisation=0.9 if s.time == -200 else 0.1) for s in past()], 0.0, 4) == 4


MEASURES = st.floats(0, 1000)


@given(
    st.lists(st.builds(Sample, st.floats(-900, 0), MEASURES, MEASURES, MEASURES, st.floats(0, 1), st.floats(0, 50))),
    st.builds(
        Policy,
        least=st.integers(0, 3),
        most=st.integers(3, 50),
        outstanding=st.sampled_from([0.0, 4.0]),
        rate=st.sampled_from([0.0, 10.0]),
        queue_seconds=st.sampled_from([0.0, 0.1]),
        utilisation=st.sampled_from([0.0, 0.7]),
    ),
    st.integers(0, 50),
)
@settings(max_examples=300, deadline=None)
def test_bounds_always_hold_and_the_answer_is_its_own_answer(
    samples: list[Sample], policy: Policy, current: int
) -> None:
    samples.sort(key=lambda sample: sample.time)
    answer = desired(policy, samples, 0.0, current)
    assert policy.least <= answer.replicas <= policy.most
    assert answer.reason
    # Asked again about the same moment it does not go back on its word.
    assert desired(policy, samples, 0.0, answer.replicas).replicas == answer.replicas
