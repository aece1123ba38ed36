"""The clock of one process can be set, and nothing but the wall clock moves."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness.clock import Clock, NoCompiler

TELL = (
    "import sys, time, datetime\n"
    "for _ in sys.stdin: print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)"
)


def test_the_wall_clock_moves_and_the_monotonic_one_does_not(tmp_path: Path) -> None:
    try:
        clock = Clock(tmp_path)
    except NoCompiler as lack:
        pytest.skip(str(lack))
    command = ["env", *clock.environment(), sys.executable, "-c", TELL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for shift in (0, 3600, -3600, 0):
            clock.shift(shift)
            process.stdin.write("?\n")
            process.stdin.flush()
            wall, date, monotonic = map(float, process.stdout.readline().split())
            assert abs(wall - time.time() - shift) < 60
            assert abs(date - wall) < 60
            assert abs(monotonic - time.monotonic()) < 60
        process.stdin.close()
