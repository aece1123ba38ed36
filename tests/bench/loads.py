"""Running the load generators: h2load for gRPC, wrk for REST, a grpcio client where a real one is asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.local.suite import ROOT
from tests.bench import output
from tests.bench.exchange import METHOD
from tests.bench.output import Load

PACKAGES: Final = {"h2load": "nghttp2-client", "wrk": "wrk"}
"""Command and the Debian package that has it."""
TIMEOUT: Final = "30S"
CHECK: Final = Path(__file__).with_name("check.lua")


@dataclass(frozen=True, slots=True)
class Shape:
    """So many connections, each with so many requests in flight."""

    connections: int
    depth: int

    @property
    def name(self) -> str:
        return f"{self.connections}x{self.depth}"


SHAPES: Final = (Shape(1, 1), Shape(8, 1), Shape(8, 8), Shape(64, 1))


def missing() -> list[str]:
    """Debian packages that are missing still, after an attempt to install them where we may."""
    wanted = [package for command, package in PACKAGES.items() if shutil.which(command) is None]
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", *wanted]):
            subprocess.run(["apt-get", "-qq", *command], capture_output=True, check=False)
    return [package for command, package in PACKAGES.items() if shutil.which(command) is None]


def warm_h2load(address: str, body: Path, shape: Shape) -> float:
    """Load for a second, unmeasured; requests a second."""
    text = _run([*_h2load(address, body, shape), "-D1"])
    return output.parse_h2load(text).rate


def h2load(address: str, body: Path, shape: Shape, requests: int, answer_size: int, scratch: Path) -> Load:
    """So many requests; raises WrongAnswers unless each had status 200 and an answer of that size (with prefix)."""
    log = scratch / "h2load.log"
    log.unlink(missing_ok=True)  # h2load appends
    command = [*_h2load(address, body, shape), f"-n{requests}", f"--log-file={log}"]
    summary = output.parse_h2load(_run(command))
    output.check_h2load(summary, answer_size)
    times = output.h2load_times(log.read_text())
    if len(times) != requests:
        raise output.WrongAnswers(f"{requests} requests were asked for, {len(times)} were logged")
    return Load(requests, summary.seconds, output.quantile(times, 0.5), output.quantile(times, 0.99))


def wrk(url: str, body: Path, answer: Path, shape: Shape, seconds: float) -> Load:
    """Load for so long; every answer's body is compared with the file `answer`. Raises WrongAnswers."""
    command = ["wrk", "-t1", f"-c{shape.connections}", f"-d{max(1, round(seconds))}s", "--timeout=30s"]
    return output.parse_wrk(_run([*command, f"--script={CHECK}", url, "--", str(body), str(answer), str(shape.depth)]))


def caller(*arguments: object) -> dict[str, Any]:
    """What tests.bench.caller prints for these arguments."""
    text = _run([sys.executable, "-m", "tests.bench.caller", *map(str, arguments)])
    said: dict[str, Any] = json.loads(text.splitlines()[-1])
    return said


def version(command: Sequence[str]) -> str:
    """First line of what a command prints, whatever its exit status."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).splitlines()[0].strip()


def _h2load(address: str, body: Path, shape: Shape) -> list[str]:
    headers = ("te: trailers", "content-type: application/grpc", f"grpc-timeout: {TIMEOUT}")
    flags = [part for header in headers for part in ("-H", header)]
    sizes = [f"-c{shape.connections}", f"-m{shape.depth}", "-t1"]
    return ["h2load", *sizes, *flags, f"--data={body}", f"http://{address}{METHOD}"]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise output.WrongAnswers(f"{command[0]} ended with status {done.returncode}: {done.stderr[-1000:]}")
    return done.stdout
