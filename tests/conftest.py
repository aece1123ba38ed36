"""Fixtures for all tests; each is at home in tests/harness."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

# Before gRPC is imported. Tests start processes beside its threads, and uvloop forks for that. Children have been seen
# to end or hang before they became what they should be, while gRPC's fork handlers, which nobody here needs, said that
# they were skipped.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from hypothesis import HealthCheck, settings

from penstock.kit.loop import Loop
from tests.harness.etcd import clean_etcd, etcd, etcd_endpoint, store
from tests.harness.etcd_cluster import etcd_cluster

__all__ = ["clean_etcd", "etcd", "etcd_cluster", "etcd_endpoint", "store"]

# No example has a deadline, at the desk either: on a busy machine any may stand still for as long as one is.
settings.register_profile("patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell without job control starts background jobs with SIGINT ignored, and every process that a test starts would
# inherit that. Tests that press Ctrl-C mean what a terminal means.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that services run on."""
    return {"penstock": Loop}
