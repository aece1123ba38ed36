"""What every command that talks to a gateway shares: opening the client, waiting with something to see."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from penstock.cli.show import Screen
from penstock.client import AsyncClient, readiness
from penstock.client.cluster import DEFAULT_WAIT, OnStatus
from penstock.client.connection import DEFAULT_TIMEOUT
from penstock.v1 import cluster_pb2 as pb


def connected(args: argparse.Namespace) -> AsyncClient:
    """The client that the arguments ask for. With --wait, --timeout belongs to the waiting."""
    waits = getattr(args, "wait", False)
    timeout = DEFAULT_TIMEOUT if waits or args.timeout is None else args.timeout
    return AsyncClient(
        args.address,
        token=args.token,
        timeout=timeout,
        tls_ca=args.tls_ca,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
    )


def wait_seconds(args: argparse.Namespace) -> bool | float:
    """What `wait` of the SDK's calls takes."""
    if not args.wait:
        return False
    return DEFAULT_WAIT if args.timeout is None else float(args.timeout)


@contextlib.contextmanager
def watching(screen: Screen, name: str = "") -> Iterator[OnStatus]:
    """Says on stderr how far things are, whenever that has changed."""
    last = ""

    def told(status: pb.ClusterStatus) -> None:
        nonlocal last
        text = "\n".join(
            readiness.explain(version)
            for version in status.versions
            if name in ("", version.name) and not readiness.is_ready(version)
        )
        if text and text != last:
            screen.note(text)
        last = text

    yield told
