"""What a deployment becomes."""

from __future__ import annotations

from services.registry.deployments import NOTHING, Plan, Wanted, deploy, retired, undeploy, without


def test_the_first_deployment_is_the_default_even_beside_others() -> None:
    assert deploy(NOTHING, 3, Wanted(2), keep_others=True) == Plan({3: Wanted(2)}, 3)


def test_a_new_default_retires_the_rest() -> None:
    plan = deploy(Plan({1: Wanted(2), 2: Wanted(1, retiring=True)}, 1), 3, Wanted(1), keep_others=False)
    assert plan == Plan({1: Wanted(2, True), 2: Wanted(1, True), 3: Wanted(1)}, 3)


def test_keeping_others_keeps_the_default() -> None:
    assert deploy(Plan({1: Wanted(2)}, 1), 2, Wanted(1), keep_others=True) == Plan({1: Wanted(2), 2: Wanted(1)}, 1)


def test_a_retiring_version_can_come_back() -> None:
    plan = Plan({1: Wanted(2, retiring=True), 2: Wanted(1)}, 2)
    assert deploy(plan, 1, Wanted(2), keep_others=True) == Plan({1: Wanted(2), 2: Wanted(1)}, 2)
    assert deploy(plan, 1, Wanted(2), keep_others=False) == Plan({1: Wanted(2), 2: Wanted(1, True)}, 1)


def test_keeping_options_takes_those_of_the_version_else_of_the_default() -> None:
    scaled = Wanted(0, scaling=b"s", placement=b"", tenant="acme")
    plan = Plan({1: scaled, 2: Wanted(3, retiring=True)}, 1)
    assert deploy(plan, 3, None, keep_others=False).versions[3] == scaled
    assert deploy(plan, 2, None, keep_others=True).versions[2] == Wanted(3)
    assert deploy(NOTHING, 1, None, keep_others=False) == Plan({1: Wanted(1)}, 1)


def test_where_the_number_moves_the_least_of_them_replaces_the_version_before() -> None:
    plan = Plan({1: Wanted(4, retiring=True), 2: Wanted(1, scaling=b"s")}, 2)
    assert retired(plan, {}, {}) == ()
    assert retired(plan, {2: 1}, {1: 1, 2: 1}) == ()
    assert retired(plan, {2: 1}, {2: 1}) == (1,)


def test_undeploying_the_default_promotes_what_was_to_stay_before_what_was_to_go() -> None:
    plan = Plan({1: Wanted(1), 2: Wanted(1, retiring=True), 3: Wanted(1)}, 3)
    assert undeploy(plan, 3) == Plan({1: Wanted(1), 2: Wanted(1, True)}, 1)
    assert undeploy(Plan({1: Wanted(1, True), 2: Wanted(1, True), 3: Wanted(1)}, 3), 3) == Plan(
        {1: Wanted(1, True), 2: Wanted(1)}, 2
    )


def test_undeploying_all_or_the_last_leaves_nothing() -> None:
    plan = Plan({1: Wanted(1)}, 1)
    assert undeploy(plan, 0) == undeploy(plan, 1) == NOTHING
    assert undeploy(plan, 7) == plan
    assert undeploy(NOTHING, 1) == NOTHING


def test_a_version_retires_when_the_default_is_complete_and_its_own_replicas_are_gone() -> None:
    plan = Plan({1: Wanted(1, retiring=True), 2: Wanted(2), 3: Wanted(1, retiring=True), 4: Wanted(1)}, 2)
    assert retired(plan, {2: 1}, {2: 2}) == ()
    assert retired(plan, {2: 2}, {1: 1, 2: 2}) == (3,)
    assert retired(plan, {2: 2}, {2: 2}) == (1, 3)
    assert retired(plan, {}, {}) == ()
    assert retired(Plan({2: Wanted(1)}, 2), {2: 1}, {2: 1}) == ()


def test_only_retiring_versions_are_dropped() -> None:
    plan = Plan({1: Wanted(1, retiring=True), 2: Wanted(2)}, 2)
    assert without(plan, (1, 2)) == Plan({2: Wanted(2)}, 2)
