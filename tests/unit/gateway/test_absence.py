"""Vanished records: what is believed at once, what is held, what ends the holding."""

from __future__ import annotations

from penstock.internal.v1.records_pb2 import DeploymentRecord, ReplicaRecord
from services.gateway.absence import History, RegistryBelief, ReplicaBelief
from tests.unit.gateway.records import DRAINING, deployment, keyed, replica

W1, W2, W3, W4 = (replica(f"w{number}") for number in range(1, 5))


def believer(*records: ReplicaRecord) -> ReplicaBelief:
    belief = ReplicaBelief(window=10)
    belief.observe(keyed(*records), 0, 0.0)
    return belief


def test_one_of_three_that_vanishes_is_gone() -> None:
    belief = believer(W1, W2, W3)
    assert belief.observe(keyed(W1, W2), 0, 1.0) == keyed(W1, W2)


def test_the_only_worker_that_vanishes_is_gone() -> None:
    assert believer(W1).observe({}, 0, 1.0) == {}


def test_half_that_vanish_at_once_are_held() -> None:
    belief = believer(W1, W2, W3, W4)
    assert belief.observe(keyed(W1, W2), 0, 1.0) == keyed(W1, W2, W3, W4)
    assert belief.observe(keyed(W1, W2), 0, 1000.0) == keyed(W1, W2, W3, W4)


def test_vanishing_one_after_the_other_within_the_window_is_at_once() -> None:
    belief = believer(W1, W2, W3)
    assert belief.observe(keyed(W1, W2), 0, 1.0) == keyed(W1, W2)
    assert belief.observe(keyed(W1), 0, 4.0) == keyed(W1, W2, W3)


def test_vanishing_slowly_is_believed() -> None:
    belief = believer(W1, W2, W3)
    belief.observe(keyed(W1, W2), 0, 1.0)
    assert belief.observe(keyed(W1), 0, 20.0) == keyed(W1)


def test_two_replicas_of_one_worker_are_one_worker() -> None:
    belief = believer(W1, replica("w1", version=2))
    assert belief.observe({}, 0, 1.0) == {}


def test_a_goodbye_is_believed() -> None:
    belief = believer(W1, W2)
    belief.observe(keyed(replica("w1", DRAINING), replica("w2", DRAINING)), 0, 1.0)
    assert belief.observe({}, 0, 2.0) == {}


def test_a_failed_connection_ends_the_holding() -> None:
    belief = believer(W1, W2)
    belief.observe({}, 0, 1.0)
    assert belief.disprove("w1:1", 2.0)
    assert belief.observe({}, 0, 2.0) == keyed(W2)
    assert not belief.disprove("w1:1", 3.0)


def test_what_a_failed_connection_foretold_is_not_held() -> None:
    belief = believer(W1, W2)
    assert not belief.disprove("w1:1", 1.0)
    assert belief.observe(keyed(W2), 0, 3.0) == keyed(W2)
    assert belief.observe({}, 0, 4.0) == {}  # one worker alone is no mass


def test_the_store_that_goes_back_in_time_is_not_believed() -> None:
    belief = believer(W1)
    assert belief.observe({}, 1, 1.0) == keyed(W1)


def test_records_that_come_back_are_news_again() -> None:
    belief = believer(W1, W2)
    belief.observe({}, 0, 1.0)
    draining = replica("w1", DRAINING)
    assert belief.observe(keyed(draining, W2), 0, 2.0) == keyed(draining, W2)
    assert belief.held == {}


def test_a_worker_that_is_back_has_a_window_to_tell_everything() -> None:
    more = replica("w1", version=2)
    belief = believer(W1, more, W2)
    belief.observe({}, 0, 1.0)
    assert belief.observe(keyed(W1, W2), 0, 2.0) == keyed(W1, more, W2)
    assert belief.observe(keyed(W1, W2), 0, 13.0) == keyed(W1, W2)


def test_history_turns_back_when_counted_and_when_the_revision_falls() -> None:
    history = History()
    assert [history.rewinds(*seen) for seen in ((0, 5), (0, 5), (0, 9), (1, 12), (1, 3), (1, 4))] == [0, 0, 0, 1, 2, 2]


def test_undeploying_is_believed_and_a_rewound_store_is_not() -> None:
    belief = RegistryBelief[DeploymentRecord](patience=60)
    one, two = {"a": deployment("a", 1)}, {"a": deployment("a", 1), "b": deployment("b", 1)}
    assert belief.observe(two, 0, 0.0) == two
    assert belief.observe(one, 0, 1.0) == one
    assert belief.observe({}, 1, 2.0) == one
    assert belief.held
    newer = {"a": deployment("a", 1, 2)}
    assert belief.observe(newer, 1, 3.0) == newer
    assert belief.observe({}, 1, 4.0) == {}


def test_patience_ends() -> None:
    belief = RegistryBelief[DeploymentRecord](patience=60)
    belief.observe({"a": deployment("a", 1)}, 0, 0.0)
    assert belief.observe({}, 1, 1.0)
    assert belief.observe({}, 1, 62.0) == {}
