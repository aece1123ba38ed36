"""An exported PyTorch program (.pt2), through the gateway."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.local.suite import Suite
from penstock import Client
from penstock.errors import InvalidManifest
from penstock.plans import public_keys
from penstock.v1 import builds_pb2
from tests.e2e.conftest import serve
from tests.harness import models
from tests.harness.build_service import NAMESPACES

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (make torch)"),
]

EXPORT = """
import sys, torch

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(16, dtype=torch.float32))
    def forward(self, x):
        return {"y": torch.tanh(x * self.weight)}

batch = torch.export.Dim("batch", min=1, max=64)
program = torch.export.export(Scale(), (torch.ones(2, 16),), dynamic_shapes=({0: batch},))
torch.export.save(program, sys.argv[1])
"""


def exported(tmp_path: Path, name: str) -> Path:
    """A folder to publish: the program, exported by a process of its own, as a user would, and its manifest."""
    folder = models.add_one(tmp_path, name)
    subprocess.run([sys.executable, "-c", EXPORT, str(folder / "model.pt2")], check=True, timeout=100)
    manifest = folder / "model.yaml"
    text = manifest.read_text().replace("model.onnx", "model.pt2").replace("format: onnx", "format: torch-export")
    manifest.write_text(text.replace(str(64 << 20), str(600 << 20)))
    return folder


def test_an_exported_program_is_published_and_answers(client: Client, tmp_path: Path) -> None:
    serve(client, exported(tmp_path, "scale"))
    rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    found = client.infer("scale", {"x": rows})["y"]
    assert found == pytest.approx(np.tanh(rows * np.arange(16, dtype=np.float32)), abs=1e-6)
    client.undeploy("scale", wait=120)


@pytest.mark.skipif(not NAMESPACES, reason="steps need namespaces, which this kernel does not give")
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler (g++)")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")
def test_a_build_makes_a_package_that_the_engine_runs(suite: Suite, client: Client, tmp_path: Path) -> None:
    import torch

    from services.worker.engines import torch_compiled
    from services.worker.engines.engine import Means

    folder = exported(tmp_path, "compiled")
    with (folder / "model.yaml").open("a") as manifest:
        manifest.write("build: {steps: [{step: compile-torch}]}\n")
    client.publish(folder)
    build = client.ended_build(next(client.builds("compiled")), wait=250)
    assert (build.state, build.result_version) == (builds_pb2.BUILD_STATE_SUCCEEDED, 0), build.reason
    key: dict[str, Any] = {
        "builder": "torch", "builder_version": str(torch.__version__), "precision": "fp32", "profile": "",
        "architecture": torch_compiled.architecture(torch, "cpu"),
    }  # fmt: skip
    found = client.find_engine(torch_compiled.digest(folder / "model.pt2"), **key)
    assert found is not None and found == build.engines[0]
    assert client.find_engine(found.source_digest, **{**key, "builder_version": "1.0"}) is None
    # As a worker would load it that trusts the registry's builder, and as one would that trusts another.
    digits = found.artifact.digest.removeprefix("sha256:")
    (plan,) = suite.state.glob(f"**/blobs/{digits[:2]}/{digits[2:]}")
    (public,) = suite.state.rglob("signing_key.pub")
    files = {"model": folder / "model.pt2", "plan": plan}
    package = torch_compiled.load(files, Means(plan_keys=public_keys(public)), torch, "cpu")
    rows = torch.arange(48, dtype=torch.float32).reshape(3, 16) / 100
    with torch.inference_mode():
        answer = package(rows)["y"]
    assert answer.numpy() == pytest.approx(np.tanh(rows.numpy() * np.arange(16, dtype=np.float32)), abs=1e-6)
    with pytest.raises(InvalidManifest, match="not trusted here"):
        torch_compiled.load(files, Means(plan_keys=(bytes(32),)), torch, "cpu")
