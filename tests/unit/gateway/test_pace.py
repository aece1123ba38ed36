"""Gray replicas are told from busy, idle and equal ones, by a clock that the test moves."""

from __future__ import annotations

import pytest

from services.gateway import pace as paces
from services.gateway.pace import Pace, gray

Group = dict[str, Pace]
NOBODY: frozenset[str] = frozenset()


def group(size: int = 3) -> Group:
    return {f"w{number + 1}": Pace() for number in range(size)}


def serve(pace: Pace, now: float, took: float, times: int = 1) -> None:
    """So many requests that all end now."""
    for _ in range(times):
        pace.began(now - took)
        pace.answered(now, took)


def steady(replicas: Group, start: float, end: float, took: dict[str, float] | float = 0.004) -> dict[str, str]:
    """Ten answers a second from each, a look every quarter; the first verdict that is not empty."""
    now = start
    while now < end:
        for name, pace in replicas.items():
            serve(pace, now, took[name] if isinstance(took, dict) else took)
        if found := gray(replicas, NOBODY, now):
            return dict(found)
        now += 0.1
    return {}


def test_equals_are_fine() -> None:
    assert steady(group(), 1, 20) == {}


def test_a_replica_that_hangs_is_silent() -> None:
    replicas = group()
    steady(replicas, 1, 5)
    replicas["w2"].began(5.0)
    for now in (5.5, 6.5, 7.4):
        serve(replicas["w1"], now, 0.004)
        assert gray(replicas, NOBODY, now) == {}
    serve(replicas["w1"], 7.6, 0.004)
    assert gray(replicas, NOBODY, 7.6) == {"w2": "silent"}
    replicas["w2"].answered(8.0, 3.0)
    assert gray(replicas, NOBODY, 8.1) == {}


def test_callers_who_give_up_do_not_end_a_silence_and_idle_time_does_not_lengthen_it() -> None:
    replicas = group()
    steady(replicas, 1, 5)
    hung, now = replicas["w2"], 10.0
    for _ in range(2):  # a second each, with five seconds of nothing between
        hung.began(now)
        hung.left(now + 1.0)
        now += 6.0
    assert hung.silence(now) == pytest.approx(2.0)
    hung.began(now)
    serve(replicas["w1"], now + 0.6, 0.004)
    assert gray(replicas, NOBODY, now + 0.4) == {}
    assert gray(replicas, NOBODY, now + 0.6) == {"w2": "silent"}


def test_a_slow_model_is_not_silent() -> None:
    replicas = group()
    for pace in replicas.values():
        serve(pace, 10.0, 4.0, times=30)
    replicas["w2"].began(10.0)
    serve(replicas["w1"], 15.0, 4.0)
    assert gray(replicas, NOBODY, 18.0) == {}  # five times its latency is twenty seconds


def test_when_nobody_answers_nobody_is_silent() -> None:
    replicas = group()
    steady(replicas, 1, 5)
    for pace in replicas.values():
        pace.began(5.0)
    assert gray(replicas, NOBODY, 20.0) == {}


def test_an_error_is_an_answer() -> None:
    replicas = group()
    for pace in replicas.values():
        pace.began(1.0)
    replicas["w2"].heard(3.0)
    replicas["w2"].began(3.0)
    replicas["w1"].heard(4.0)
    assert gray(replicas, NOBODY, 4.1) == {"w3": "silent"}
    assert replicas["w2"].seen == 0


def failing(replicas: Group, shares: dict[str, int], end: float) -> dict[str, str]:
    """A hundred answers a second from each, of which so many of ten are failures; the first verdict."""
    now, count = 5.0, 0
    while now < end:
        for name, pace in replicas.items():
            pace.began(now)
            if count % 10 < shares.get(name, 0):
                pace.failed(now)
            else:
                pace.answered(now, 0.004)
        if found := gray(replicas, NOBODY, now):
            return dict(found)
        now, count = now + 0.01, count + 1
    return {}


def test_a_replica_that_fails_while_others_answer_is_found_within_a_few_answers() -> None:
    assert failing(group(), {"w2": 10}, 5.1) == {"w2": "failing"}
    assert failing(group(2), {"w1": 10}, 5.1) == {"w1": "failing"}


@pytest.mark.parametrize("share", [1, 3, 5, 10])
def test_requests_that_fail_everywhere_are_no_replicas_fault(share: int) -> None:
    assert failing(group(), dict.fromkeys(group(), share), 30.0) == {}


def test_a_few_failures_are_borne() -> None:
    assert failing(group(), {"w2": 2}, 30.0) == {}


def test_a_replica_fails_only_beside_one_that_has_answered_since() -> None:
    replicas = group(2)
    steady(replicas, 1, 5)
    for _ in range(20):
        replicas["w2"].began(5.0)
        replicas["w2"].failed(5.0)
    assert gray(replicas, NOBODY, 5.0) == {}
    serve(replicas["w1"], 5.1, 0.004)
    assert gray(replicas, NOBODY, 5.1) == {"w2": "failing"}
    replicas["w2"].forget(5.1)
    assert gray(replicas, NOBODY, 5.2) == {}


def test_failures_are_lived_down() -> None:
    replicas = group(2)
    for _ in range(6):
        replicas["w2"].began(1.0)
        replicas["w2"].failed(1.0)
    assert steady(replicas, 2, 10) == {}
    assert failing(replicas, {"w2": 10}, 5.04) == {}, "what is over counts no more"


def test_one_of_ten_times_the_latency_is_slow_and_only_after_a_while() -> None:
    replicas = group()
    assert steady(replicas, 1, 5) == {}
    slow = {"w1": 0.004, "w2": 0.04, "w3": 0.004}
    assert steady(replicas, 5, 6, slow) == {}
    assert steady(replicas, 6, 10, slow) == {"w2": "slow"}


def test_a_little_slower_or_a_single_late_answer_is_not_slow() -> None:
    assert steady(group(), 1, 20, {"w1": 0.004, "w2": 0.010, "w3": 0.004}) == {}
    assert steady(group(), 1, 20, {"w1": 0.1, "w2": 0.25, "w3": 0.1}) == {}
    replicas = group()
    steady(replicas, 1, 5)
    serve(replicas["w2"], 5.0, 2.0)
    assert steady(replicas, 5, 20) == {}


@pytest.mark.parametrize(("size", "most"), [(1, 0), (2, 1), (3, 1), (5, 1), (6, 2), (9, 3)])
def test_at_most_a_third_and_never_the_last(size: int, most: int) -> None:
    replicas = group(size)
    steady(replicas, 1, 5)
    for name in list(replicas)[:-1] or list(replicas):
        replicas[name].began(5.0)
    serve(replicas[f"w{size}"], 7.9, 0.004)
    found = gray(replicas, NOBODY, 8.0)
    assert len(found) == most
    assert gray(replicas, frozenset(found), 8.0) == {} or most == 0


def test_what_was_sent_before_is_forgotten_with_the_rest() -> None:
    pace = Pace()
    pace.began(1.0)
    pace.began(5.5)
    pace.forget(5.0)
    pace.answered(6.0, 5.0)
    assert (pace.seen, pace.latency) == (0, 0.0)
    pace.answered(6.0, 0.5)
    assert (pace.seen, pace.latency) == (1, 0.5)


def test_too_little_is_known_of_the_others() -> None:
    replicas = group(2)
    serve(replicas["w1"], 1.0, 1.0, times=paces.ENOUGH)
    serve(replicas["w2"], 1.0, 0.001, times=paces.ENOUGH - 1)
    assert not paces.too_slow(1.0, [replicas["w2"]])
    serve(replicas["w2"], 1.0, 0.001)
    assert paces.too_slow(1.0, [replicas["w2"]])


def test_what_is_expected_is_known_after_enough_answers_and_not_for_ever() -> None:
    pace = Pace()
    serve(pace, 10.0, 0.030, paces.ENOUGH - 1)
    assert pace.expected(10.0) == 0.0
    serve(pace, 10.0, 0.030)
    assert pace.expected(10.0 + paces.STALE) == pytest.approx(0.030)
    assert pace.expected(10.1 + paces.STALE) == 0.0, "it is tried again"
    pace.began(20.0)
    assert pace.expected(20.0) == pytest.approx(0.030), "by one request at a time"
    pace.answered(20.01, 0.010)
    assert pace.expected(20.1) == pytest.approx(0.020), "and believed soon that it is well"
    serve(pace, 30.0, 0.500)
    assert pace.expected(30.0) < 0.06, "but not soon that it is not"
