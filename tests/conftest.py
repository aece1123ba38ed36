"""Fixtures for all tests; each is at home in tests/harness."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping

from penstock.kit.loop import Loop
from tests.harness.etcd import clean_etcd, etcd, etcd_endpoint, store
from tests.harness.etcd_cluster import etcd_cluster

__all__ = ["clean_etcd", "etcd", "etcd_cluster", "etcd_endpoint", "store"]

# Tests start processes beside gRPC's threads; gRPC's fork handlers, which nobody here needs, would say so on stderr.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A shell without job control starts background jobs with SIGINT ignored, and every process that a test starts would
# inherit that. Tests that press Ctrl-C mean what a terminal means.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that services run on."""
    return {"penstock": Loop}
