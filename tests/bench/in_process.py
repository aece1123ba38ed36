"""What the Python of both hops costs by itself: `python -m tests.bench.in_process`, which prints CPU-µs per request.

Without sockets (tests/bench/chain.py), so what the kernel, the event loop and other processes add is not in it: the
difference to `make bench` is theirs. It runs compiled code where there is any, as gateway and worker do, and says so;
`--interpreted` leaves that aside. `--tenant N` has the gateway count the requests of a tenant. `--profile` names the
functions instead, of interpreted code: a profiler sees little of the other.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from penstock.kit import compiled

ROUNDS: Final = 300
AT_ONCE: Final = 64
"""Requests of a round: 8 connections with 8 each, as far as Python is concerned."""


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.in_process", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help=f"requests of a round (default: {AT_ONCE})")
    parser.add_argument(
        "--tenant", type=int, default=0, metavar="N", help="count a tenant's requests, at a gateway of N processes"
    )
    parser.add_argument("--interpreted", action="store_true", help="not what is compiled")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by function")
    options = parser.parse_args(arguments)
    if not (options.interpreted or options.profile):
        print(f"{'code':28} {compiled.activate()}")

    # After it, so that what is compiled is found compiled.
    from penstock.kit import log
    from penstock.kit.loop import Loop
    from tests.bench.chain import STAGES, admitting, measure

    log.setup("bench", "in_process", level="warning", format="json")
    profile = cProfile.Profile()
    with asyncio.Runner(loop_factory=Loop) as runner, TemporaryDirectory() as folder:
        admission = admitting(Path(folder), options.tenant) if options.tenant else None
        if options.profile:
            profile.enable()
        stages = runner.run(measure(options.rounds, options.at_once, admission))
        profile.disable()
    if options.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        return 0
    for name, microseconds in zip(STAGES, stages, strict=True):
        print(f"{name:28} {microseconds:6.1f}")
    print(f"{'both hops':28} {sum(stages):6.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
