"""A client over grpc++, the C++ implementation that Debian ships, with stubs made from protos/ and nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.local.suite import ROOT, Suite
from tests.e2e.conftest import grpc_address

SOURCE = Path(__file__).parent / "cpp" / "client.cpp"
PROTO = "penstock/oip/inference.proto"
PACKAGES = ("libgrpc++-dev", "libprotobuf-dev", "protobuf-compiler-grpc")
"""14 MB with what they need, on Debian 12; Java would need a JDK besides."""


def tools_are_here() -> bool:
    return all(map(shutil.which, ("g++", "protoc", "grpc_cpp_plugin"))) and Path("/usr/include/grpcpp").exists()


def installed() -> str:
    """Installs what is missing where that is allowed; the reason why it cannot."""
    if tools_are_here():
        return ""
    if not shutil.which("g++") or not shutil.which("apt-get"):
        return "needs g++ and Debian's apt"
    if os.geteuid() != 0:
        return f"as root: apt-get install {' '.join(PACKAGES)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    for command in (install, ["apt-get", "update", "-q"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if command is install and done.returncode == 0:
            break
    return "" if tools_are_here() else f"apt cannot install grpc++ here: {done.stderr.strip()[-200:]}"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, compiled. Its messages are lite: they compile in half the time."""
    if reason := installed():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cpp")
    plugin = shutil.which("grpc_cpp_plugin")
    generate = ["protoc", f"-I{ROOT / 'protos'}", f"--cpp_out=lite:{folder}", f"--grpc_out={folder}", PROTO]
    subprocess.run([*generate, f"--plugin=protoc-gen-grpc={plugin}"], check=True)
    stem = folder / PROTO.removesuffix(".proto")
    sources = [Path(f"{stem}.pb.cc"), Path(f"{stem}.grpc.pb.cc"), SOURCE]
    objects = [folder / f"{source.name}.o" for source in sources]

    def compiled(source: Path, to: Path) -> None:
        command = ["g++", "-std=c++17", "-O0", f"-I{folder}", "-c", str(source), "-o", str(to)]
        subprocess.run(command, check=True, timeout=280)

    with ThreadPoolExecutor(len(sources)) as threads:
        list(threads.map(compiled, sources, objects))
    link = ["-Wl,--copy-dt-needed-entries", "-lgrpc++", "-lprotobuf", "-lpthread", "-o", str(folder / "client")]
    subprocess.run(["g++", *map(str, objects), *link], check=True)
    return folder / "client"


def test_inference_and_streams_from_cpp(suite: Suite, add1: str, program: Path) -> None:
    done = subprocess.run([program, grpc_address(suite)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "live": True,
        "unary": 100,
        "missing": 5,
        "compressed": 12,
        # Fifty answers in order; the eighth is an error, and the stream goes on.
        "stream": 50,
        "stream_failed": 7,
        "stream_status": 0,
        # A stream that is opened with triton_grpc_error ends with its first error, after the answers before it.
        "strict_answers": 1,
        "strict_status": 5,
        "late_answers": 1,
        "late_status": 4,
        "cancelled_status": 1,
    }
