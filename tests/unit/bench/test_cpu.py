"""CPU time by group: the arithmetic on values, and the reading of /proc on real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.bench.cells import count, figures
from tests.bench.cpu import Meter, Restarted, Spent, Used, family, parse_stat, resident_megabytes, used
from tests.bench.loads import Shape
from tests.bench.output import Load

BURN = "import time; print(flush=True)\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"


def test_a_name_may_hold_anything() -> None:
    line = "12 (a b) c) S 1 12 12 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 3 0 100 1 1"
    assert parse_stat(line) == ("a b) c", 300, 50)


def test_seconds_are_summed_by_group() -> None:
    before = {1: Spent("gateway", 100, 10, 3), 2: Spent("worker", 50), 3: Spent("engine", 10)}
    after = {
        1: Spent("gateway", 150, 30, 5),
        2: Spent("worker", 50),
        3: Spent("engine", 30),
        4: Spent("gateway", 25, 5, 4),
    }
    found = used(before, after, 100)
    assert found.seconds == {"engine": 0.2, "gateway": 0.75, "worker": 0.0}
    assert found.kernel == {"engine": 0.0, "gateway": 0.25, "worker": 0.0}
    assert found.waits == {"engine": 0.0, "gateway": 6.0, "worker": 0.0}


def test_a_lost_process_is_noticed() -> None:
    with pytest.raises(Restarted, match="engine"):
        used({1: Spent("worker", 1), 2: Spent("engine", 1)}, {1: Spent("worker", 1)}, 100)


def test_the_engine_counts_apart() -> None:
    seconds = {"gateway": 0.02, "worker": 0.03, "engine": 0.5}
    cell = figures(
        Load(1000, 2.0, 0.001, 0.002),
        Used(seconds, {"gateway": 0.01, "worker": 0.01, "engine": 0.1}, {"gateway": 2000.0, "worker": 3000.0}),
    )
    assert cell["both_us"] == pytest.approx(50)
    assert cell["kernel_us"] == pytest.approx(20)
    assert cell["waits"] == 5
    assert cell["engine_us"] == pytest.approx(500)
    assert cell["rate"] == 500


def test_every_connection_gets_the_same_number() -> None:
    assert count(1000.0, 2.0, Shape(8, 8)) == 2000
    assert count(1.0, 1.0, Shape(64, 1)) == 128, "two rounds at least"
    assert count(10.0, 2.4, Shape(1, 1)) == 24


def test_a_real_process_is_measured() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        assert child.pid in family(os.getpid())
        assert resident_megabytes(child.pid) > 1
        meter = Meter({child.pid: "burner"})
        meter.start()
        child.stdout.readline()
        spent = meter.stop()
        child.stdin.write("\n")
    assert 0.05 < spent.seconds["burner"] < 0.4
    assert spent.kernel["burner"] <= spent.seconds["burner"]
    with pytest.raises(Restarted):
        meter.stop()


def test_waits_are_counted() -> None:
    meter = Meter({os.getpid(): "us"})
    meter.start()
    for _ in range(3):
        subprocess.run(["true"], check=True)  # each is waited for
    assert meter.stop().waits["us"] >= 3


def test_idle_costs_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        meter = Meter({os.getpid(): "us"})
        meter.start()
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        assert meter.stop().seconds["us"] > 0.05
        child.stdin.write("\n")
