"""Takes away from a process that works on what somebody else gave what it does not need: the network, other processes,
files of its service, room. A build's step and a worker's compiler are such processes.

With namespaces of its own (man 7 namespaces) it has no network interface but a loopback that is down, sees only its
own processes, which all end with the first of them, and finds the service's folder empty. Where the kernel or a
container forbids that, `separate` says why, and the caller decides whether the work may be done at all.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import struct
from dataclasses import dataclass
from typing import Final, NoReturn

_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWPID: Final = 0x20000000
_CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID_NODEV_NOEXEC: Final = 2 | 4 | 8
_MS_BIND: Final = 4096
_MS_REC_PRIVATE: Final = 16384 | (1 << 18)
_CAPABILITY_VERSION: Final = 0x20080522  # _LINUX_CAPABILITY_VERSION_3


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may use. Bytes and seconds; file_bytes of one file, folder_bytes of all that it writes.

    addresses: memory_bytes are of address space, else of data: CUDA reserves far more addresses than it uses.
    """

    memory_bytes: int = 8 << 30
    cpu_seconds: int = 3600
    wall_seconds: float = 3600.0
    file_bytes: int = 16 << 30
    folder_bytes: int = 32 << 30
    open_files: int = 1024
    processes: int = 512
    addresses: bool = True


def separate() -> str:
    """New namespaces for this process and those that it starts; empty when that is done, else why it is not.

    The process must have one thread.
    """
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNS
    if libc.unshare(flags) != 0:
        return os.strerror(ctypes.get_errno())
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    except OSError as problem:
        return problem.strerror or "no map of users"
    return ""


def fork_within() -> None:
    """Forks twice: the grandchild returns; the child is the first process of its namespace and does nothing but wait.

    The kernel kills every process of a namespace when its first ends, which happens when the grandchild has ended and
    when the process that called this dies. The first itself would be spared by signals such as SIGXCPU, so no work
    is done in it. Each waiting process ends as the one that it waits for.
    """
    watched, held = os.pipe()
    if first := os.fork():
        os.close(watched)
        _end_as(first)
    os.close(held)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The caller's end of the pipe closes with it; if that is so already, the signal was asked for too late.
    if select.select([watched], [], [], 0)[0]:
        os._exit(1)
    if worker := os.fork():
        _end_as(worker)
    os.close(watched)


def adopt_orphans() -> None:
    """What this process starts comes back to it when its parent ends, so that `left_behind` knows."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hide(folder: str, kept: str) -> str:
    """Puts emptiness over the service's folder, with `kept` below it still there, and makes /proc our own.

    Empty when that is done, else why it is not. The working folder, which is below `kept`, stays where it is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.getcwd()
    descriptor = os.open(kept, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        done = libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) == 0
        done = done and libc.mount(b"tmpfs", folder.encode(), b"tmpfs", _MS_NOSUID_NODEV_NOEXEC, b"mode=0700") == 0
        if not done:
            return os.strerror(ctypes.get_errno())
        os.makedirs(kept, mode=0o700)
        if libc.mount(f"/proc/self/fd/{descriptor}".encode(), kept.encode(), None, _MS_BIND, None) != 0:
            return os.strerror(ctypes.get_errno())
        os.chdir(here)
        if libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None) != 0:
            return os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)
    return ""


def give_up_capabilities() -> None:
    """Gives up what the first process of a namespace may do in it, such as taking away what hides a folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = 0
    while libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    libc.capset(struct.pack("<Ii", _CAPABILITY_VERSION, 0), bytes(24))


def limit(limits: Limits) -> None:
    """Sets what the kernel counts. A number of processes is not counted for root, whose processes are unlimited."""
    for kind, number in (
        (resource.RLIMIT_AS if limits.addresses else resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes),
    ):
        _, most = resource.getrlimit(kind)
        number = int(number) if most == resource.RLIM_INFINITY else min(int(number), most)
        # At the hard limit of processor time the kernel kills without saying why; a little above, the soft one says it.
        above = 5 if kind == resource.RLIMIT_CPU and most == resource.RLIM_INFINITY else 0
        resource.setrlimit(kind, (number, number + above))


def left_behind() -> bool:
    """Whether a process that this one or its children started is still there."""
    while True:
        try:
            found, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if found == 0:
            return True


def _end_as(child: int) -> NoReturn:
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)
