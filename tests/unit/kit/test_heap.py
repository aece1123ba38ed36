"""Freed memory stays with the process: counted in page faults, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from penstock.kit import heap
if {keep}:
    heap.keep_freed()
def messages():
    held = [bytes(600_000 + number) for number in range(6)]
    return sum(each.count(1) for each in held)
for _ in range(5):
    messages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    messages()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keep: bool) -> int:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True, check=True, timeout=60
    )
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep memory by rules of their own")
def test_large_blocks_that_come_again_cost_no_page_faults() -> None:
    assert faults(keep=False) > 2000
    assert faults(keep=True) < 200
