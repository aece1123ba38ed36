"""A client in another language: Node.js, with stubs made from protos/ and nothing of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.local.suite import ROOT, Suite
from tests.e2e.conftest import grpc_address

HERE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def node() -> str:
    """The node executable, its packages installed at the locked versions."""
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("Node.js and npm are not on this machine")
    if not (HERE / "node_modules" / "@grpc" / "grpc-js").exists():
        command = ["npm", "ci", "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=280, check=False)
        if done.returncode != 0:
            pytest.skip(f"npm cannot install the client's packages here: {done.stderr.strip()[-200:]}")
    return found


def test_inference_management_and_streams_from_node(suite: Suite, add1: str, node: str) -> None:
    command = [node, str(HERE / "client.js"), grpc_address(suite), str(ROOT / "protos")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["live"] is True
    assert said["id"] == "from-node"
    assert said["answer"] == [float(number + 1) for number in range(16)]
    assert add1 in said["models"]
    assert said["ready"] == 2
    assert said["missing"]["code"] == 5
    assert "nobody" in said["missing"]["details"]
    # Streams: in order, with errors as answers, unless the stream was opened with triton_grpc_error.
    answers = said["open"]["answers"]
    assert [answer["id"] for answer in answers] == [str(number) for number in range(20)]
    assert ["nobody" in answer["error"] for answer in answers] == [number == 7 for number in range(20)]
    assert said["open"]["code"] == 0
    assert [answer["id"] for answer in said["strict"]["answers"]] == ["0"]
    assert said["strict"]["code"] == 5
    assert said["late"] == {"count": 1, "code": 4}
    assert said["cancelled"] == {"count": 1, "code": 1}
