"""Rows 12 and 19: a worker on a host of its own, whose cables are cut; a wire that repeats itself."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from deploy.local.ports import Ports
from services.worker.fence import ANSWER_SECONDS
from tests.fault.island import Island, island
from tests.fault.proxy import Proxy
from tests.fault.replays import Replayer
from tests.fault.result import LEASE, Result, Scenario, answers_again, only_the_first_fail, proxied
from tests.fault.stand import PROXIED, Dress, Load, Stand, wait_until

HEARTBEAT = 3.0
"""Seconds within which a lost worker is avoided."""
SHARE = 0.005
"""Of requests that may fail."""
FRAMES = 2_000


@contextmanager
def _far_worker(stand: Stand) -> Iterator[tuple[Stand, Island]]:
    """A stand whose worker PROXIED lives on an island, and finds etcd and the registry at the end of one cable, while
    gateways find it at the end of the other."""
    with island() as isle, ExitStack() as held:

        def dress(ports: Ports) -> Dress:
            grpc, admin, registry = ports["worker_3_grpc"], ports["worker_3_admin"], ports["registry_grpc"]
            near, far = isle.etcd.near, isle.gateways.far
            # What the island's end of a cable is asked for is found on the island's loopback, and the other way round.
            held.enter_context(
                isle.forwarding(
                    {
                        f"{far}:{grpc}": f"127.0.0.1:{grpc}",
                        f"{far}:{admin}": f"127.0.0.1:{admin}",
                        f"127.0.0.1:{registry}": f"{near}:{registry}",
                    }
                )
            )
            held.enter_context(Proxy(("127.0.0.1", registry), near, registry))
            return Dress(before={PROXIED: isle.before}, etcd_for=near, worker_at=far)

        with stand.apart(dress) as own:
            yield own, isle


def far_from_etcd(stand: Stand) -> Result:
    """No packet between the worker and etcd: it serves on until others have taken over, and comes back by itself."""
    result = Result()
    with _far_worker(stand) as (own, isle), own.load() as load:
        at = time.monotonic()
        isle.etcd.cut()
        wait_until(lambda: PROXIED not in own.replicas())
        result.timed("replaced", time.monotonic() - at, 2 * LEASE)
        load.wait_for(int(2 * own.rate))
        _healed(own, isle, load, result)
    result.take(load.ledger, share=SHARE)
    result.timed("recovery", load.ledger.recovery(at), HEARTBEAT + 1)
    return result


def far_from_gateways(stand: Stand) -> Result:
    """No packet between the worker and gateways: the control plane sees it well, gateways see that it is not."""
    result = Result()
    with _far_worker(stand) as (own, isle), own.load() as load:
        at = time.monotonic()
        isle.gateways.cut()
        load.wait_for(int(10 * own.rate))
        result.must(PROXIED in own.replicas(), "the control plane gave up a worker that it sees well")
        _healed(own, isle, load, result)
    _few_fail(load, at, result)
    result.timed("recovery", load.ledger.recovery(at), HEARTBEAT + 1)
    return result


def far_from_all(stand: Stand) -> Result:
    """No packet at all: the worker is given up and others take over; it lets go of callers who do not answer, so that
    nothing is delivered late."""
    result = Result()
    with _far_worker(stand) as (own, isle), own.load() as load:
        at = time.monotonic()
        isle.etcd.cut()
        isle.gateways.cut()
        wait_until(lambda: PROXIED not in own.replicas())
        result.timed("replaced", time.monotonic() - at, 2 * LEASE)
        wait_until(lambda: own.events(PROXIED, "callers_let_go") > 0)
        result.timed("callers let go", time.monotonic() - at, 2 * LEASE + ANSWER_SECONDS)
        load.wait_for(int(2 * own.rate))
        _healed(own, isle, load, result)
    _few_fail(load, at, result)
    result.timed("recovery", load.ledger.recovery(at), HEARTBEAT + 1)
    return result


def heard_by_nobody(stand: Stand) -> Result:
    """One way only: the worker hears everything and nobody hears it."""
    result = Result()
    with _far_worker(stand) as (own, isle), own.load() as load:
        at = time.monotonic()
        isle.etcd.cut(to_island=False)
        isle.gateways.cut(to_island=False)
        wait_until(lambda: PROXIED not in own.replicas())
        result.timed("replaced", time.monotonic() - at, 2 * LEASE)
        load.wait_for(int(2 * own.rate))
        _healed(own, isle, load, result)
    _few_fail(load, at, result)
    result.timed("recovery", load.ledger.recovery(at), HEARTBEAT + 1)
    return result


def replies_replayed(stand: Stand) -> Result:
    """Row 19: between gateways and a worker, answers come again, late, and out of order."""
    result = Result()
    made: list[Replayer] = []

    def transform() -> Callable[[bytes], bytes]:
        made.append(Replayer(random.Random(stand.seed + len(made)), most=12))
        return made[-1].feed

    stand.to_worker.transform = transform
    try:
        with proxied(stand), stand.load(("gateway", "gateway-2")) as load:
            wait_until(lambda: sum(each.replayed for each in made) >= FRAMES, 120)
            load.wait_for(int(stand.rate))
    finally:
        stand.to_worker.transform = None
    result.take(load.ledger)
    result.measured["frames replayed"] = sum(each.replayed for each in made)
    result.measured["answers out of order"] = sum(each.swapped for each in made)
    return result


def _few_fail(load: Load, at: float, result: Result) -> None:
    """Only what was there when a cable was cut, and not many of all."""
    only_the_first_fail(load.ledger, at, result)
    account = load.ledger.account()
    result.must(account.failures <= SHARE * account.sent, f"{account.failures} of {account.sent} failed")


def _healed(own: Stand, isle: Island, load: Load, result: Result) -> None:
    """Cables are whole again: the worker is back at once and stays."""
    registrations = own.events(PROXIED, "replica_state")
    isle.etcd.heal()
    isle.gateways.heal()
    own.settle()
    answers_again(load, lambda entry: entry.worker == PROXIED)
    before = own.events(PROXIED, "replica_state")
    load.wait_for(int(2 * LEASE * own.rate))
    flaps = own.events(PROXIED, "replica_state") - before
    result.measured["states after the heal"] = before - registrations
    result.measured["flaps"] = flaps
    result.must(not flaps, f"the worker's replica changed {flaps} times after it was back")


SCENARIOS = (
    Scenario(
        "12", "far-from-etcd", "netns: no packet between a worker and etcd", "failed ≤ 0.5 %, no flap", far_from_etcd
    ),
    Scenario(
        "12",
        "far-from-gateways",
        "netns: no packet between a worker and gateways",
        "≤ 0.5 % fail, of what was there; recovery ≤ 4 s, no flap",
        far_from_gateways,
    ),
    Scenario(
        "12",
        "far-from-all",
        "netns: no packet between a worker and anybody",
        "≤ 0.5 % fail, of what was there; replaced; callers let go; recovery ≤ 4 s, no flap",
        far_from_all,
    ),
    Scenario(
        "12",
        "heard-by-nobody",
        "netns: no packet from a worker, all packets to it",
        "≤ 0.5 % fail, of what was there; replaced; recovery ≤ 4 s, no flap",
        heard_by_nobody,
    ),
    Scenario(
        "19",
        "replies-replayed",
        f"answers of a worker come again, late, out of order: {FRAMES} frames",
        "failed 0, duplicated 0, wrong 0",
        replies_replayed,
    ),
)
