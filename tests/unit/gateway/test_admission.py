"""Who is let in, and how many: decided without a clock, by one process or by several that see each other's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import PenstockError, PermissionDenied, ResourceExhausted, Unavailable
from penstock.internal.v1.records_pb2 import TenantRecord
from services.gateway.admission import KNOWN, Account, Admission, Terms

NOW = 1000.0


def tenant(name: str = "team", *models: str, rate: float = 0.0, burst: int = 0, concurrent: int = 0) -> TenantRecord:
    models = models or ("*",)
    return TenantRecord(name=name, models=models, rate=rate, burst=burst, concurrent=concurrent)


def told(*tenants: TenantRecord, gateways: int = 1) -> tuple[Admission, list[str]]:
    """What was said of these, and why requests were refused."""
    reasons: list[str] = []
    made = Admission(told=reasons.append)
    made.say(tenants, gateways, NOW)
    return made, reasons


class Shared:
    """Numbers of several processes, as their shared memory has them."""

    def __init__(self, processes: int) -> None:
        self.full_at = [0.0] * processes
        self.under_way = [0] * processes


class Elsewhere:
    """What one process sees. late: it does not see yet what the others tell."""

    def __init__(self, shared: Shared, mine: int) -> None:
        self._shared, self._mine = shared, mine
        self.late: float | None = None

    def _others(self, numbers: Sequence[float]) -> list[float]:
        return [number for place, number in enumerate(numbers) if place != self._mine]

    def full_at(self) -> float:
        if self.late is not None:
            seen, self.late = self.late, None
            return seen
        return max(self._others(self._shared.full_at), default=0.0)

    def under_way(self) -> float:
        return sum(self._others(self._shared.under_way))

    def tell_full_at(self, moment: float) -> None:
        self._shared.full_at[self._mine] = moment

    def tell_under_way(self, count: int) -> None:
        self._shared.under_way[self._mine] = count


def test_where_nothing_is_said_nobody_is_asked() -> None:
    made, _ = told()
    assert not made.guarded
    assert made.admit("team", "digits", NOW) is None
    assert made.permitted("team", "digits")


def test_before_anything_is_read_nobody_is_let_in() -> None:
    made = Admission(read=False)
    assert made.guarded and made.ready() == "what callers may do has not been read yet"
    with pytest.raises(Unavailable, match="not been read") as raised:
        made.admit("team", "digits", NOW)
    assert raised.value.retry_after == 1.0
    with pytest.raises(Unavailable, match="not been read"):
        made.permit("team", "digits")
    made.say([], 1, NOW)
    assert made.ready() is None and not made.guarded


@pytest.mark.parametrize(
    ("models", "allowed", "refused"),
    [
        (["digits"], ["digits"], ["digit", "digits2", "Digits", "fraud-a"]),
        (["fraud-*"], ["fraud-", "fraud-a", "fraud-a.b"], ["fraud", "frau", "digits", "x-fraud-a"]),
        (["fraud-*", "digits"], ["fraud-b", "digits"], ["digits-b"]),
        (["*"], ["a", "digits", "x" * 5000], []),
        ([], [], ["digits", "a"]),
    ],
)
def test_which_models(models: list[str], allowed: list[str], refused: list[str]) -> None:
    made, reasons = told(TenantRecord(name="team", models=models))
    for _ in range(2):
        for model in allowed:
            assert made.admit("team", model, NOW) is not None
            made.permit("team", model)
        for model in refused:
            words = f"tenant 'team' may not call model '{model}'; ask"
            with pytest.raises(PermissionDenied, match=words) as raised:
                made.admit("team", model, NOW)
            assert raised.value.field == "model_name"
            with pytest.raises(PermissionDenied, match=words):
                made.permit("team", model)
            assert not made.permitted("team", model)
    assert set(reasons) <= {"model"} and len(reasons) == 4 * len(refused)


def test_a_request_that_names_no_model_is_for_others_to_refuse() -> None:
    made, _ = told(TenantRecord(name="team"))
    assert made.admit("team", "", NOW) is not None


def test_what_is_remembered_of_models_is_bounded() -> None:
    terms = Terms(tenant("team", "m-*"))
    for number in range(3 * KNOWN):
        assert terms.allow(f"m-{number}") and not terms.allow(f"n-{number}")
        terms.allow("m-" + "x" * 10_000 + str(number))
    assert len(terms._known) <= KNOWN and max(map(len, terms._known)) <= 64


def test_the_default_holds_for_each_who_has_nothing_of_his_own() -> None:
    made, _ = told(tenant("default", "digits", concurrent=1), tenant("team", "*", concurrent=2))
    for caller in ("one", "two"):
        assert made.admit(caller, "digits", NOW) is not None
        with pytest.raises(ResourceExhausted, match=f"tenant '{caller}' may have 1 request under way at a time"):
            made.admit(caller, "digits", NOW)
        with pytest.raises(PermissionDenied):
            made.admit(caller, "other", NOW)
    for _ in range(2):
        made.admit("team", "other", NOW)
    with pytest.raises(ResourceExhausted, match="2 requests"):
        made.admit("team", "other", NOW)


def test_a_rate_and_when_to_come_again() -> None:
    made, reasons = told(tenant(rate=4.0, burst=2))
    for _ in range(2):
        assert made.admit("team", "m", NOW) is not None
    with pytest.raises(ResourceExhausted) as raised:
        made.admit("team", "m", NOW)
    assert raised.value.retry_after == 0.25 and reasons == ["rate"]
    assert raised.value.message == (
        "tenant 'team' may send 4 requests a second, 2 at once, and has; try again in 0.25 s"
    )
    with pytest.raises(ResourceExhausted) as raised:
        made.admit("team", "m", NOW + 0.1)
    assert raised.value.retry_after == pytest.approx(0.15, abs=0.001)
    assert made.admit("team", "m", NOW + 0.25) is not None
    # After any pause it is the burst and no more.
    for _ in range(2):
        assert made.admit("team", "m", NOW + 99) is not None
    with pytest.raises(ResourceExhausted):
        made.admit("team", "m", NOW + 99)


def test_a_place_is_free_once_a_request_is_over() -> None:
    made, reasons = told(tenant(concurrent=2))
    first, second = made.admit("team", "m", NOW), made.admit("team", "m", NOW)
    assert first is not None and first is second and first.under_way == 2
    with pytest.raises(ResourceExhausted, match="wait for one to end") as raised:
        made.admit("team", "m", NOW)
    assert raised.value.retry_after == 1.0 and reasons == ["concurrent"]
    first.left()
    assert made.admit("team", "m", NOW) is not None
    first.left()
    first.left()
    assert first.under_way == 0


def test_a_refused_request_costs_nothing() -> None:
    made, _ = told(tenant("team", "m", rate=1.0, burst=1, concurrent=1))
    for _ in range(9):
        with pytest.raises(PermissionDenied):
            made.admit("team", "other", NOW)
    account = made.admit("team", "m", NOW)
    assert account is not None
    for _ in range(9):
        with pytest.raises(ResourceExhausted, match="under way"):
            made.admit("team", "m", NOW + 1.0)
    account.left()
    assert made.admit("team", "m", NOW + 1.0) is not None


def test_one_that_begins_anew_counts_once() -> None:
    made, _ = told(tenant(rate=1.0, burst=1, concurrent=1))
    account = made.admit("team", "m", NOW)
    assert account is not None
    account.undo()
    assert account.under_way == 0
    assert made.admit("team", "m", NOW) is account
    with pytest.raises(ResourceExhausted):
        made.admit("team", "m", NOW)


def test_terms_that_change_hold_for_what_is_under_way() -> None:
    made, _ = told(tenant(rate=0.001, burst=1, concurrent=9))
    account = made.admit("team", "m", NOW)
    assert account is not None
    made.say([tenant(rate=10.0, burst=1, concurrent=1)], 1, NOW)
    with pytest.raises(ResourceExhausted, match="under way"):
        made.admit("team", "m", NOW)
    account.left()
    # Under the old rate it was a quarter of an hour until the next.
    assert made.admit("team", "m", NOW + 0.1) is account
    made.say([], 1, NOW)
    assert not made.guarded and made.admit("team", "m", NOW) is None
    made.say([tenant(concurrent=1)], 1, NOW)
    with pytest.raises(ResourceExhausted, match="under way"):
        made.admit("team", "m", NOW)
    account.left()
    assert account.under_way == 0


def test_the_same_said_again_changes_nothing() -> None:
    made, _ = told(tenant(rate=1.0, burst=2))
    account = made.admit("team", "m", NOW)
    assert account is not None
    terms = account.terms
    made.say([tenant(rate=1.0, burst=2)], 1, NOW)
    assert account.terms is terms
    made.say([tenant(rate=1.0, burst=2)], 2, NOW)
    assert account.terms is not terms


@pytest.mark.parametrize(("gateways", "rate", "burst", "concurrent"), [(2, 5.0, 2.0, 4), (3, 10 / 3, 4 / 3, 3)])
def test_each_of_several_gateways_has_its_part(gateways: int, rate: float, burst: float, concurrent: int) -> None:
    terms = Terms(tenant(rate=10.0, burst=4, concurrent=7), gateways)
    assert (terms.rate, terms.burst, terms.concurrent) == (rate, burst, concurrent)
    few = Terms(tenant(rate=0.5, burst=1, concurrent=1), gateways)
    assert (few.burst, few.concurrent) == (1.0, 1), "no gateway turns everybody away"


class World:
    """Several processes that let one caller's requests in, and what each did."""

    def __init__(self, processes: int, record: TenantRecord) -> None:
        self.shared = Shared(processes)
        self.elsewhere = [Elsewhere(self.shared, place) for place in range(processes)]
        terms = Terms(record)
        self.accounts = [
            Account("team", terms, lambda reason: None, place if processes > 1 else None) for place in self.elsewhere
        ]
        self.terms = terms
        self.under_way = [0] * processes

    def ask(self, process: int, now: float) -> PenstockError | None:
        try:
            self.accounts[process].admit(self.terms, "m", now)
        except ResourceExhausted as refusal:
            return refusal
        self.under_way[process] += 1
        return None

    def leave(self, process: int) -> None:
        if self.under_way[process]:
            self.under_way[process] -= 1
            self.accounts[process].left()


PAUSES = st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.0, 7.0, 100.0])
STEPS = st.lists(st.tuples(PAUSES, st.integers(0, 2), st.booleans()), max_size=120)
RATES = st.one_of(st.sampled_from([0.001, 1 / 3, 1.0, 1e6]), st.floats(0.01, 500.0))


@given(steps=STEPS, rate=RATES, burst=st.integers(1, 9), processes=st.integers(1, 3))
def test_never_more_than_the_burst_and_what_the_rate_allows(
    steps: list[tuple[float, int, bool]], rate: float, burst: int, processes: int
) -> None:
    """Between any two moments, over all processes; and who is told when to come is let in then."""
    world = World(processes, tenant(rate=rate, burst=burst))
    now, moments = NOW, []
    for pause, process, patient in steps:
        now += pause
        refusal = world.ask(process % processes, now)
        if refusal is not None and patient:
            assert refusal.retry_after is not None and 0 < refusal.retry_after <= 1 / rate + 0.001
            now += refusal.retry_after
            refusal = world.ask(process % processes, now)
            assert refusal is None
        if refusal is None:
            moments.append(now)
    for first, since in enumerate(moments):
        for last in range(first, len(moments)):
            most = burst + rate * (moments[last] - since)
            assert last - first + 1 <= most * (1 + 1e-6) + 1e-3


@given(steps=STEPS, concurrent=st.integers(1, 5), processes=st.integers(1, 3))
def test_never_more_under_way_than_may_be_and_none_is_lost(
    steps: list[tuple[float, int, bool]], concurrent: int, processes: int
) -> None:
    world = World(processes, tenant(concurrent=concurrent))
    for _, process, leaves in steps:
        there, before = process % processes, sum(world.under_way)
        if leaves:
            world.leave(there)
        else:
            assert (world.ask(there, NOW) is None) == (before < concurrent)
        assert sum(world.under_way) <= concurrent
        assert [account.under_way for account in world.accounts] == world.under_way
        if processes > 1:
            assert world.shared.under_way == world.under_way
    for process in range(processes):
        while world.under_way[process]:
            world.leave(process)
    assert all(world.ask(number % processes, NOW) is None for number in range(concurrent))


def test_two_that_do_not_see_each_other_in_time_are_both_counted() -> None:
    """Each has looked before the other told: one is too many for a moment, and is paid back."""
    world = World(2, tenant(rate=1.0, burst=1))
    world.elsewhere[1].late = 0.0
    assert world.ask(0, NOW) is None and world.ask(1, NOW) is None
    for process in (0, 1):
        refusal = world.ask(process, NOW + 1.0)
        assert refusal is not None and refusal.retry_after == 1.0
    assert world.ask(0, NOW + 2.0) is None
    assert math.isclose(max(world.shared.full_at), NOW + 3.0)
