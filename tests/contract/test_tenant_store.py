"""What the registry's records of tenants promise, on SQLite and on PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.errors import InvalidArgument, NotFound
from penstock.v1 import tenants_pb2 as pb
from services.registry.tenants.store import TenantStore
from tests.contract.conftest import Clock


def tenant(name: str, *models: str, rate: float = 0.0, burst: int = 0, concurrent: int = 0) -> pb.Tenant:
    return pb.Tenant(name=name, models=models, rate=rate, burst=burst, concurrent=concurrent)


def test_what_is_said_is_there_and_replaces_what_was_said(tenants: TenantStore, clock: Clock) -> None:
    made = tenants.set(tenant("fraud-team", "fraud-*", rate=1.5, burst=3, concurrent=2), "boss")
    assert (made.name, list(made.models), made.rate, made.burst, made.concurrent, made.who) == (
        "fraud-team", ["fraud-*"], 1.5, 3, 2, "boss",
    )  # fmt: skip
    assert made.update_time.ToMicroseconds() == clock.now
    assert tenants.get("fraud-team") == made
    changed = tenants.set(tenant("fraud-team", "other"), "clerk")
    assert (list(changed.models), changed.rate, changed.concurrent, changed.who) == (["other"], 0, 0, "clerk")
    assert changed.update_time.ToMicroseconds() == clock.now > made.update_time.ToMicroseconds()
    assert tenants.get("fraud-team") == changed


def test_saying_the_same_again_changes_nothing(tenants: TenantStore) -> None:
    made = tenants.set(tenant("a", "x", rate=1.0, burst=1), "boss")
    assert tenants.set(tenant("a", "x", rate=1.0, burst=1), "clerk") == made


def test_its_generation_grows_though_the_clock_goes_back(tenants: TenantStore, clock: Clock) -> None:
    tenants.set(tenant("a"), "boss")
    before = tenants.records()["a"].generation
    clock.now -= 100
    tenants.set(tenant("a", "x"), "boss")
    assert tenants.records()["a"].generation == before + 1


def test_what_the_gateways_are_told(tenants: TenantStore, clock: Clock) -> None:
    assert tenants.records() == {}
    tenants.set(tenant("b", "x", "y-*", rate=2.0, burst=4, concurrent=8), "boss")
    said_at = clock.now
    tenants.set(tenant("A"), "boss")
    records = tenants.records()
    assert set(records) == {"A", "b"}
    told = records["b"]
    assert (told.name, told.generation, list(told.models)) == ("b", said_at, ["x", "y-*"])
    assert (told.rate, told.burst, told.concurrent) == (2.0, 4, 8)


def test_forgetting_is_idempotent(tenants: TenantStore) -> None:
    tenants.set(tenant("a"), "boss")
    for _ in range(2):
        tenants.delete("a")
    assert tenants.records() == {}
    with pytest.raises(NotFound, match="nothing is said of tenant 'a'"):
        tenants.get("a")


def test_pages(tenants: TenantStore) -> None:
    names = ["B", "C.c", "a", "b-1", "b_2"]
    for name in reversed(names):
        tenants.set(tenant(name), "boss")
    found, token = [], ""
    for size in (2, 2, 1):
        page, token = tenants.list(2, token)
        assert len(page) == size
        found += [one.name for one in page]
    assert (found, token) == (names, "")
    assert [one.name for one in tenants.list(0, "")[0]] == names
    with pytest.raises(InvalidArgument, match="page_token"):
        tenants.list(2, "strange")
    with pytest.raises(InvalidArgument, match="page_size"):
        tenants.list(1001, "")


def test_many_at_once_lose_nothing(tenants: TenantStore) -> None:
    """The same tenant and others, set and forgotten by several registries."""

    def say(number: int) -> None:
        tenants.set(tenant(f"t{number % 4}", "x", concurrent=number + 1), "boss")
        if number % 7 == 0:
            tenants.delete(f"t{number % 4}")
            tenants.set(tenant(f"t{number % 4}", "y"), "boss")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(say, range(40)))
    assert set(tenants.records()) == {"t0", "t1", "t2", "t3"}
