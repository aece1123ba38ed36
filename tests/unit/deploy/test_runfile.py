"""Who runs over one state folder: told apart from strangers, and changed by one at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.local.__main__ import pool
from deploy.local.ports import Ports
from deploy.local.runfile import Run, RunFile, began_at
from deploy.local.suite import Suite, SuiteError


def test_it_remembers(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "state")
    assert file.read() == Run()
    with file.changing() as run:
        run.processes["worker-1"] = 7
    with RunFile(tmp_path / "state").changing() as run:
        run.leaving.append("worker-1")
    assert file.read() == Run(processes={"worker-1": 7}, leaving=["worker-1"])
    file.remove()
    file.remove()
    assert file.read() == Run()


def test_a_change_that_fails_changes_nothing(tmp_path: Path) -> None:
    file = RunFile(tmp_path)
    with pytest.raises(ZeroDivisionError), file.changing() as run:
        run.stopping = True
        raise ZeroDivisionError
    assert file.read() == Run()
    with file.changing() as run:
        run.stopping = True
    assert file.read().stopping


COUNT = """
import sys
from pathlib import Path
from deploy.local.runfile import RunFile
file = RunFile(Path(sys.argv[1]))
for _ in range(50):
    with file.locked(), file.changing() as run:
        run.ports["count"] = run.ports.get("count", 0) + 1
"""


def test_several_processes_lose_no_change(tmp_path: Path) -> None:
    counting = [subprocess.Popen([sys.executable, "-c", COUNT, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in counting] == [0, 0, 0]
    assert RunFile(tmp_path).read().ports == {"count": 150}


def test_a_process_is_known_by_when_it_began() -> None:
    assert began_at(os.getpid()) == began_at(os.getpid()) != began_at(1)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert began_at(child.pid) is not None
        assert child.stdin is not None
        child.stdin.close()
        # Dead, and nobody has waited for it yet.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert began_at(child.pid) is None
    assert began_at(child.pid) is None


def test_a_pid_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    suite = Suite(tmp_path, Ports.free())
    with suite.run.changing() as run:
        run.processes = {"worker-1": os.getpid(), "worker-2": os.getpid()}
        run.began = {"worker-1": began_at(os.getpid()) or 0, "worker-2": 1}
    assert suite.running() == {"worker-1": os.getpid()}


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="nothing runs"):
        Suite.found(tmp_path)
    with pytest.raises(SuiteError, match="comma"):
        Suite(tmp_path / "a,b", Ports.free(), pool=(1, 2))


def test_a_pool_gives_schedulers_a_command_and_workers_a_label(tmp_path: Path) -> None:
    rows = {row.name: row.command for row in Suite(tmp_path, Ports.free(), pool=(2, 5)).table()}
    assert "--pools=local:2:5" in rows["scheduler-1"] and "--provider=command" in rows["scheduler-2"]
    assert "--labels=pool=local" in rows["worker-1"] and "worker-2" in rows and "worker-3" not in rows
    fixed = Suite(tmp_path, Ports.free()).table()
    assert not any(word.startswith(("--pool", "--provider", "--labels")) for row in fixed for word in row.command)


def test_the_environment_says_how_many() -> None:
    assert pool("") is None
    assert pool("1:4") == (1, 4)
    for wrong in ("4", "1:", ":4", "0:4", "4:1", "1:65", "a:b", "1:2:3", "-1:3", "١:٣"):
        with pytest.raises(ValueError, match="PENSTOCK_LOCAL_POOL"):
            pool(wrong)
