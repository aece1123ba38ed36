"""The provider that runs a command, with real commands."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from penstock.errors import Unavailable
from services.scheduler.providers.command import Command

SCRIPT = """
import json, os, sys
state = sys.argv[1]
if sys.argv[2] == "size":
    print(json.load(open(state))["count"])
else:
    pool, count, *leaving = sys.argv[3:]
    json.dump({"count": int(count), "pool": pool, "leaving": leaving}, open(state, "w"))
"""


def script(tmp_path: Path, text: str, *arguments: str, seconds: float = 30.0) -> Command:
    path = tmp_path / "resize.py"
    path.write_text(text)
    return Command([sys.executable, str(path), *arguments], seconds=seconds)


async def test_it_asks_and_orders(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"count": 2}')
    command = script(tmp_path, SCRIPT, str(state))
    assert await command.size("cpu") == 2
    await command.resize("cpu", 1, ["worker-9", "worker-$(id)"])
    assert json.loads(state.read_text()) == {"count": 1, "pool": "cpu", "leaving": ["worker-9", "worker-$(id)"]}
    assert await command.size("cpu") == 1


@pytest.mark.parametrize("text", ["", "print('many')", "print(-1)", "print('٣')", "print('1' * 10)", "print(2, 3)"])
async def test_what_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Unavailable, match="printed no number"):
        await script(tmp_path, text).size("cpu")


async def test_one_that_fails_says_why_in_the_log_alone(tmp_path: Path) -> None:
    command = script(tmp_path, "import sys; sys.exit('the quota of eu-1 is used up')")
    with pytest.raises(Unavailable, match="ended with status 1") as caught:
        await command.resize("cpu", 3, [])
    assert "quota" in caught.value.detail and "quota" not in caught.value.message
    with pytest.raises(Unavailable, match="cannot be started"):
        await Command([str(tmp_path / "nothing")]).size("cpu")


HANGS = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


async def test_one_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    waiting = asyncio.create_task(script(tmp_path, HANGS, str(pid)).size("cpu"))
    child = os.pidfd_open(int(await asyncio.to_thread(pid.read_text)))
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(child, gone.set)
    waiting.cancel()
    async with asyncio.timeout(30):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(child)
    os.close(child)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_it_has_so_long_and_no_longer(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"took more than 0.2 s"):
        await script(tmp_path, "import time; time.sleep(600)", seconds=0.2).size("cpu")
