"""Tests. They mirror penstock/ and services/; what they stand on is in tests/harness."""
