"""Fixtures for all tests; each is at home in tests/harness."""

from tests.harness.etcd import clean_etcd, etcd, etcd_endpoint, store

__all__ = ["clean_etcd", "etcd", "etcd_endpoint", "store"]
