"""Runtime folders: private, shared by those who join, swept when nobody uses them."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.kit import runtime
from penstock.kit.runtime import RuntimeFolder

HOLDER = """
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from penstock.kit.runtime import RuntimeFolder
folder = RuntimeFolder.join(Path(sys.argv[1])) if len(sys.argv) > 1 else RuntimeFolder.make()
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where folders are made, here and in processes; pytest's own is too deep for a socket."""
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(name)


class Holder:
    """A process with a folder."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-c", HOLDER, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.path = Path(self._process.stdout.readline().strip())

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


def test_a_folder_is_private_and_gone_afterwards(temporary: Path) -> None:
    folder = RuntimeFolder.make()
    assert folder.path.parent == temporary
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (folder.path / "some.sock").touch()
    folder.close()
    folder.close()
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_swept_by_the_next_start() -> None:
    holder = Holder()
    (holder.path / "some.sock").touch()
    holder.kill()
    assert holder.path.exists()
    folder = RuntimeFolder.make()
    assert not holder.path.exists() and folder.path.exists()
    folder.close()


def test_a_folder_in_use_stays_whoever_made_it() -> None:
    owner = Holder()
    joined = Holder(str(owner.path))
    runtime.sweep()
    assert owner.path.exists()
    owner.kill()
    runtime.sweep()
    assert owner.path.exists(), "a process that joined still uses it"
    joined.kill()
    runtime.sweep()
    assert not owner.path.exists()


def test_who_joined_does_not_remove_it() -> None:
    folder = RuntimeFolder.make()
    RuntimeFolder.join(folder.path).close()
    assert folder.path.exists()
    folder.close()


def test_a_sweep_touches_nothing_else(temporary: Path) -> None:
    open_to_all, file, link = (temporary / f"penstock-run-{name}" for name in ("open", "file", "link"))
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    file.touch()
    target = temporary / "target"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    (temporary / "penstock-bench-1").mkdir(mode=0o700)
    runtime.sweep()
    assert len(list(temporary.iterdir())) == 5


def test_a_socket_in_it_has_an_address_however_deep_temporary_files_lie(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (60, 61, 200):
        deep = temporary / ("d" * (length - len(str(temporary)) - 1))
        deep.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(deep))
        folder = RuntimeFolder.make()
        assert (folder.path.parent == deep) is (length == 60)
        with socket.socket(socket.AF_UNIX) as longest:
            longest.bind(str(folder.path / "control-4194304.sock"))
        folder.close()


@pytest.mark.parametrize("when", ["before it is opened", "before it is locked"])
def test_a_folder_swept_while_it_was_made_is_not_used(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = runtime._opened
    swept: list[Path] = []

    def sweeping(path: Path) -> int:
        if swept:
            return opened(path)
        swept.append(path)
        if when == "before it is opened":
            path.rmdir()
        lock = opened(path)
        path.rmdir()
        return lock

    monkeypatch.setattr(runtime, "_opened", sweeping)
    before = os.listdir("/proc/self/fd")
    folder = RuntimeFolder.make()
    assert swept and folder.path != swept[0] and folder.path.exists()
    folder.close()
    assert len(os.listdir("/proc/self/fd")) <= len(before)


CROWD = """
from penstock.kit.runtime import RuntimeFolder
for _ in range(200):
    folder = RuntimeFolder.make()
    assert folder.path.exists()
    (folder.path / "some.sock").touch()
    folder.close()
"""


def test_many_that_start_at_the_same_time_do_not_sweep_each_other() -> None:
    crowd = [subprocess.Popen([sys.executable, "-c", CROWD]) for _ in range(4)]
    assert [each.wait() for each in crowd] == [0] * 4
