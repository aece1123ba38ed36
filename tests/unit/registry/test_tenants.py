"""What can be said of a tenant, and how it is refused."""

from __future__ import annotations

import math

import pytest

from penstock.errors import InvalidArgument
from penstock.v1 import tenants_pb2 as pb
from services.registry.tenants.checks import MAX_BURST, MAX_CONCURRENT, MAX_MODELS, checked


def test_what_is_kept() -> None:
    said = pb.Tenant(name="Fraud-Team", models=["fraud-*", "digits", "*", "digits"], rate=0.5, burst=9, concurrent=3)
    said.who, said.update_time.seconds = "somebody", 7
    kept = checked(said)
    assert (kept.name, list(kept.models)) == ("Fraud-Team", ["fraud-*", "digits", "*"])
    assert (kept.rate, kept.burst, kept.concurrent) == (0.5, 9, 3)
    assert not kept.who and not kept.HasField("update_time"), "the registry says these"


def test_nothing_but_a_name_is_a_tenant_that_may_call_nothing_without_limit() -> None:
    kept = checked(pb.Tenant(name="default"))
    assert (list(kept.models), kept.rate, kept.burst, kept.concurrent) == ([], 0, 0, 0)


@pytest.mark.parametrize(("rate", "burst"), [(0.001, 1), (0.5, 1), (1, 1), (1.5, 2), (100, 100), (1e6, 1_000_000)])
def test_a_burst_that_nobody_says_is_what_the_rate_allows_in_a_second(rate: float, burst: int) -> None:
    assert checked(pb.Tenant(name="a", rate=rate)).burst == burst


@pytest.mark.parametrize(
    ("field", "words", "said"),
    [
        ("name", "cannot name a tenant", {"name": "a/b"}),
        ("name", "cannot name a tenant", {"name": ""}),
        ("models[1]", "cannot name a model; use 1 to 64", {"models": ["x", "Fraud"]}),
        ("models[0]", "the beginning of names and a *", {"models": ["-*"]}),
        ("models[0]", "the beginning of names and a *", {"models": ["a*b*"]}),
        ("models[0]", "the beginning of names and a *", {"models": ["x" * 65 + "*"]}),
        ("models[0]", "cannot name a model", {"models": [""]}),
        ("models[0]", "cannot name a model", {"models": ["digits:prod"]}),
        ("models", f"it may have {MAX_MODELS}", {"models": [f"m{n}" for n in range(MAX_MODELS + 1)]}),
        ("rate", "is not 0.001 to 1e+06 requests a second, or 0 for no limit", {"rate": -1}),
        ("rate", "0.001", {"rate": 0.0009}),
        ("rate", "1e+06", {"rate": 1_000_001}),
        ("rate", "nan", {"rate": math.nan}),
        ("rate", "inf", {"rate": math.inf}),
        ("burst", "without a rate has no meaning", {"burst": 3}),
        ("burst", f"is not 1 to {MAX_BURST}, or 0 for what the rate allows", {"rate": 1, "burst": -1}),
        ("burst", f"is not 1 to {MAX_BURST}", {"rate": 1, "burst": MAX_BURST + 1}),
        ("concurrent", f"is not 1 to {MAX_CONCURRENT}, or 0 for no limit", {"concurrent": -1}),
        ("concurrent", f"is not 1 to {MAX_CONCURRENT}", {"concurrent": MAX_CONCURRENT + 1}),
    ],
)
def test_refusals_name_the_field_and_what_would_be_right(field: str, words: str, said: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        checked(pb.Tenant(**({"name": "a"} | said)))  # type: ignore[arg-type]
    assert raised.value.field == f"tenant.{field}"
    assert words in raised.value.message and raised.value.message.startswith(f"tenant.{field}: ")
