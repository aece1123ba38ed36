"""What can be said of a tenant (pure). Every refusal names its field and says what would be right."""

from __future__ import annotations

import math
import re
from typing import Final

from penstock import names
from penstock.errors import InvalidArgument
from penstock.v1 import tenants_pb2 as pb

MAX_MODELS: Final = 256
RATE: Final = (0.001, 1e6)
"""A request in about a quarter of an hour, and more than all gateways together can do."""
MAX_BURST: Final = 1_000_000
MAX_CONCURRENT: Final = 1_000_000

_BEGINNING: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def checked(tenant: pb.Tenant) -> pb.Tenant:
    """The tenant as it is kept, without what the registry sets. Raises InvalidArgument."""
    kept = pb.Tenant(
        name=names.tenant(tenant.name, "tenant.name"),
        models=_models(tenant),
        rate=_rate(tenant.rate),
        concurrent=_whole("concurrent", tenant.concurrent, MAX_CONCURRENT, "0 for no limit"),
    )
    kept.burst = _burst(tenant)
    return kept


def _models(tenant: pb.Tenant) -> list[str]:
    """In order, each once."""
    if len(tenant.models) > MAX_MODELS:
        raise _wrong(
            "models",
            f"has {len(tenant.models)} entries; it may have {MAX_MODELS}, and one that ends with * stands for many",
        )
    return list(dict.fromkeys(_pattern(text, f"models[{number}]") for number, text in enumerate(tenant.models)))


def _pattern(text: str, field: str) -> str:
    if not text.endswith("*"):
        return names.model(text, f"tenant.{field}")
    beginning = text[:-1]
    if beginning and not _BEGINNING.fullmatch(beginning):
        raise _wrong(
            field, f"{text[:80]!a} stands for no models; use a model's name, the beginning of names and a *, or * alone"
        )
    return text


def _rate(rate: float) -> float:
    least, most = RATE
    if rate == 0 or (math.isfinite(rate) and least <= rate <= most):
        return abs(rate)
    raise _wrong("rate", f"{rate:g} is not {least:g} to {most:g} requests a second, or 0 for no limit")


def _burst(tenant: pb.Tenant) -> int:
    burst = _whole("burst", tenant.burst, MAX_BURST, "0 for what the rate allows in a second")
    if burst and not tenant.rate:
        raise _wrong("burst", f"{burst} without a rate has no meaning; give a rate too, or leave it out")
    return burst or math.ceil(tenant.rate)


def _whole(field: str, number: int, most: int, zero: str) -> int:
    if 0 <= number <= most:
        return number
    raise _wrong(field, f"{number} is not 1 to {most}, or {zero}")


def _wrong(field: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"tenant.{field}: {text}", field=f"tenant.{field}")
