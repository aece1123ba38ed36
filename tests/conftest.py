"""Fixtures for all tests; each is at home in tests/harness."""

import signal

from tests.harness.etcd import clean_etcd, etcd, etcd_endpoint, store

__all__ = ["clean_etcd", "etcd", "etcd_endpoint", "store"]

# A shell without job control starts background jobs with SIGINT ignored, and every process that a test starts would
# inherit that. Tests that press Ctrl-C mean what a terminal means.
signal.signal(signal.SIGINT, signal.default_int_handler)
