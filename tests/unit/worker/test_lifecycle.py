"""What to start and retire, and whose orders count."""

from __future__ import annotations

from penstock.internal.v1.records_pb2 import AssignedReplica, AssignmentRecord
from services.worker.lifecycle import Orders, Plan, Present, plan


def assigned(version: int, digest: str = "d") -> AssignedReplica:
    return AssignedReplica(name="m", version=version, manifest_digest=digest)


def orders(term: int, *versions: int) -> AssignmentRecord:
    return AssignmentRecord(worker="w", term=term, replicas=[assigned(version) for version in versions])


def test_the_plan_is_the_difference() -> None:
    wanted = {("m", 1): assigned(1), ("m", 2): assigned(2)}
    present = {("m", 2): Present("d", False), ("m", 3): Present("d", False)}
    assert plan(wanted, present) == Plan(start=(assigned(1),), retire=(("m", 3),))
    assert plan(wanted, {identity: Present("d", False) for identity in wanted}) == Plan()


def test_what_retires_is_not_told_twice_and_comes_back_only_when_it_is_gone() -> None:
    retiring = {("m", 1): Present("d", True)}
    assert plan({}, retiring) == Plan()
    assert plan({("m", 1): assigned(1)}, retiring) == Plan()
    assert plan({("m", 1): assigned(1)}, {}) == Plan(start=(assigned(1),))


def test_another_manifest_under_the_same_number_replaces_the_replica() -> None:
    wanted = {("m", 1): assigned(1, "new")}
    assert plan(wanted, {("m", 1): Present("old", False)}) == Plan(retire=(("m", 1),))


def test_a_lower_term_is_refused_and_the_same_or_a_higher_one_obeyed() -> None:
    under_test = Orders()
    assert under_test.follow(orders(5, 1), 0)
    assert not under_test.follow(orders(4, 2), 0)
    assert set(under_test.replicas) == {("m", 1)}
    assert under_test.follow(orders(5, 1, 2), 0)
    assert under_test.follow(orders(9), 0)
    assert not under_test.replicas


def test_no_record_is_no_order() -> None:
    under_test = Orders()
    under_test.follow(orders(5, 1), 0)
    assert under_test.follow(None, 0)
    assert set(under_test.replicas) == {("m", 1)}
    assert not under_test.follow(orders(4), 0)


def test_a_store_that_went_back_starts_its_terms_anew() -> None:
    under_test = Orders()
    under_test.follow(orders(500, 1), 0)
    assert under_test.follow(orders(3, 2), 1)
    assert set(under_test.replicas) == {("m", 2)}
    assert not under_test.follow(orders(2, 1), 1)


def test_a_record_from_before_the_store_went_back_says_nothing_of_its_terms() -> None:
    """That the store went back may be known before its records are read again."""
    under_test = Orders()
    under_test.follow(orders(500, 1), 0)
    assert under_test.follow(orders(500, 1), 1)
    assert set(under_test.replicas) == {("m", 1)}
    assert under_test.follow(orders(3, 2), 1)
    assert set(under_test.replicas) == {("m", 2)}
