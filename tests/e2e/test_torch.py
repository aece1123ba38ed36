"""An exported PyTorch program (.pt2), through the gateway."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock import Client
from tests.e2e.conftest import serve
from tests.harness import models

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


def test_an_exported_program_is_published_and_answers(client: Client, tmp_path: Path) -> None:
    folder = models.add_one(tmp_path, "scale")
    # Exported by a process of its own, as a user would.
    subprocess.run([sys.executable, "-c", EXPORT, str(folder / "model.pt2")], check=True, timeout=100)
    manifest = folder / "model.yaml"
    text = manifest.read_text().replace("model.onnx", "model.pt2").replace("format: onnx", "format: torch-export")
    manifest.write_text(text.replace(str(64 << 20), str(600 << 20)))
    serve(client, folder)
    rows = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    found = client.infer("scale", {"x": rows})["y"]
    assert found == pytest.approx(np.tanh(rows * np.arange(16, dtype=np.float32)), abs=1e-6)
    client.undeploy("scale", wait=30)
