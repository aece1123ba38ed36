"""A mirror in a process of its own, to be stopped: prints what it shows at every change, as a line of JSON.

    python -m tests.harness.follower 127.0.0.1:2379

The lines map the ids of workers to their `memory_bytes`.
"""

from __future__ import annotations

import asyncio
import json
import sys

from penstock.cluster import Etcd, Mirror, keys
from penstock.internal.v1.records_pb2 import WorkerRecord


async def main(endpoint: str) -> None:
    """Until it is killed."""

    def tell() -> None:
        shown = {record.id: record.memory_bytes for record in mirror.records.values()}
        print(json.dumps(shown), flush=True)

    mirror = Mirror(Etcd([endpoint]), keys.WORKERS, WorkerRecord, tell)
    await mirror.run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
