"""tenant set, show, list, delete: who may call which models, and how much of that at a time."""

from __future__ import annotations

import argparse

from penstock.cli import messages
from penstock.cli.connect import connected
from penstock.cli.show import Screen
from penstock.v1 import tenants_pb2 as pb

COLUMNS = ("TENANT", "MODELS", "RATE", "BURST", "CONCURRENT", "SAID (UTC)", "BY")


async def set_tenant(args: argparse.Namespace, screen: Screen) -> int:
    """Says it, and shows what holds then."""
    async with connected(args) as client:
        made = await client.set_tenant(
            args.name, args.model, rate=args.rate, burst=args.burst, concurrent=args.concurrent
        )
    return _shown(made, screen)


async def show(args: argparse.Namespace, screen: Screen) -> int:
    """One tenant."""
    async with connected(args) as client:
        found = await client.tenant(args.name)
    return _shown(found, screen)


async def listed(args: argparse.Namespace, screen: Screen) -> int:
    """All of them."""
    async with connected(args) as client:
        found = [one async for one in client.tenants()]
    if screen.as_json:
        screen.data({"tenants": [messages.plain(one) for one in found]})
    else:
        screen.table(COLUMNS, [row(one) for one in found], empty="nothing is said of anybody: everything is allowed")
    return 0


async def delete(args: argparse.Namespace, screen: Screen) -> int:
    """Forgets one."""
    async with connected(args) as client:
        await client.delete_tenant(args.name)
    if screen.as_json:
        screen.data({})
    else:
        screen.line(f"nothing is said of {args.name} any more")
    return 0


def row(tenant: pb.Tenant) -> tuple[str, ...]:
    """One tenant as a row."""
    return (
        tenant.name,
        ", ".join(tenant.models) or "none",
        f"{tenant.rate:g}/s" if tenant.rate else "any",
        str(tenant.burst) if tenant.burst else "",
        str(tenant.concurrent) if tenant.concurrent else "any",
        messages.when(tenant.update_time),
        tenant.who,
    )


def _shown(tenant: pb.Tenant, screen: Screen) -> int:
    if screen.as_json:
        screen.data({"tenant": messages.plain(tenant)})
    else:
        screen.table(COLUMNS, [row(tenant)])
    return 0
