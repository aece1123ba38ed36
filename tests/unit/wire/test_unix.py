"""The unix socket of the hop: what a path may be, whose socket is taken, where long folders do no harm."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from penstock.wire.http2 import unix


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "private"
    made.mkdir(mode=0o700)
    return made


def test_a_path_leads_to_its_process(folder: Path) -> None:
    listener, path = unix.bound(str(folder))
    with listener:
        listener.listen()
        with unix.connected(path) as calling, listener.accept()[0] as called:
            calling.send(b"hello")
            assert called.recv(5) == b"hello"
            assert unix.trusted(called)
        other, another = unix.bound(str(folder))
        other.close()
        assert another != path


def test_a_folder_may_be_longer_than_an_address(folder: Path) -> None:
    deep = folder / ("a" * 100) / ("b" * 100)
    deep.mkdir(mode=0o700, parents=True)
    listener, path = unix.bound(str(deep))
    with listener:
        listener.listen()
        unix.connected(path).close()


def test_a_socket_that_nobody_listens_on(folder: Path) -> None:
    listener, path = unix.bound(str(folder))
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        unix.connected(path)
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        unix.connected(path)


@pytest.mark.parametrize(
    "path", ["/run/docker.sock", "hop-{n}.sock", "/tmp/hop-{n}.sock/../x", "", "/tmp/hop-{n}.sock\n"]
)
def test_only_paths_of_ours_are_tried(path: str) -> None:
    with pytest.raises(PermissionError, match="no path of"):
        unix.connected(path.format(n="0" * 32))


def test_a_folder_that_others_may_enter_is_none_of_ours(folder: Path) -> None:
    listener, path = unix.bound(str(folder))
    with listener:
        listener.listen()
        folder.chmod(0o755)
        with pytest.raises(PermissionError, match="not private"):
            unix.connected(path)
        with pytest.raises(PermissionError, match="not private"):
            unix.bound(str(folder))
        folder.chmod(0o700)
        link = folder.parent / "link"
        link.symlink_to(folder)
        with pytest.raises(NotADirectoryError):
            unix.connected(str(link / os.path.basename(path)))


class Told:
    """A socket whose other end is a process of that user, as the kernel says."""

    def __init__(self, user: int) -> None:
        self._user = user

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_PEERCRED)
        return struct.pack("3i", 1, self._user, 0)


def test_whose_process_is_let_in() -> None:
    assert unix.trusted(Told(os.geteuid()))
    assert unix.trusted(Told(0))
    assert not unix.trusted(Told(os.geteuid() + 1))
