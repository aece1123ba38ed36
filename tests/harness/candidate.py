"""A candidate for leadership in a process of its own, to be killed and stopped: while it leads, it writes a ledger.

    python -m tests.harness.candidate 127.0.0.1:2379 some-id 2.0

Every write is guarded by the term and says `term number`. Prints `leading TERM` when a term begins.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from contextlib import suppress

from penstock.cluster import Election, Etcd, Term, TermOver
from penstock.errors import Unavailable
from penstock.internal.v1.records_pb2 import LeaderRecord

LEDGER = "/penstock/ledger"


async def write_ledger(term: Term) -> None:
    """Writes until cancelled or refused."""
    for number in itertools.count():
        with suppress(Unavailable):
            await term.put(LEDGER, f"{term.number} {number}".encode())


async def main(endpoint: str, name: str, ttl: float) -> None:
    etcd = Etcd([endpoint])
    election = Election(etcd, LeaderRecord(id=name), ttl)
    while True:
        with suppress(TermOver):
            async with election.lead() as term:
                print("leading", term.number, flush=True)
                await write_ledger(term)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
