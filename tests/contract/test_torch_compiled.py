"""Packages of AOTInductor run in the place of their program when a trusted builder signed them for this machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import InvalidManifest
from penstock.plans import PlanHeader, wrap
from penstock.v1 import manifest_pb2 as pb
from services.worker.engines.engine import NOTHING, Means
from services.worker.engines.torch_compiled import architecture, digest, fits
from tests.harness.engines import spec
from tests.harness.fake_tensorrt import KEY, PUBLIC

HEADER = PlanHeader(
    source="sha256:" + "0" * 64, builder="torch", version="2.13.0+cpu", architecture="cpu-x86_64_avx2",
    precision="fp32", created="2026-11-25T00:00:00Z",
)  # fmt: skip
HAVE = (HEADER.source, "2.13.0+cpu", "cpu-x86_64_avx2")
MEANS = Means(plan_keys=(PUBLIC,))
NO_TORCH = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
MANIFEST = pb.Manifest(
    name="m", format="torch-export", inputs=[spec("x", "FP32", 4)], outputs=[spec("y", "FP32", 3)],
    batching=pb.Batching(max_batch_size=8),
)  # fmt: skip
# In a process of its own: compiling leaves worker processes and caches of its own behind.
COMPILE = """
import sys
import torch

class Program(torch.nn.Module):
    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return {"y": x[:, :3] * self.sign}

batch = torch.export.Dim("batch", min=1, max=64)
def exported(sign):
    return torch.export.export(Program(sign), (torch.ones(2, 4),), dynamic_shapes=({0: batch},))
torch.export.save(exported(1.0), sys.argv[1])
# Not the same program, so that a test can tell which of the two ran.
torch._inductor.aoti_compile_and_package(exported(-1.0), package_path=sys.argv[2])
"""


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({}, True), ({"version": "2.13.1+cpu"}, False), ({"builder": "tensorrt"}, False),
        ({"architecture": "cpu-x86_64_avx512"}, False), ({"architecture": "sm90"}, False),
        ({"source": "sha256:" + "1" * 64}, False),
    ],
)  # fmt: skip
def test_a_package_must_be_of_this_program_this_torch_and_this_machine(change: dict[str, Any], runs: bool) -> None:
    assert fits(dataclasses.replace(HEADER, **change), *HAVE) is runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("aoti")
    program, package = folder / "model.pt2", folder / "package.pt2"
    subprocess.run([sys.executable, "-c", COMPILE, program, package], check=True, capture_output=True)
    return program, package.read_bytes()


@NO_TORCH
@pytest.mark.torch
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::FutureWarning:torch.*")
def test_a_signed_package_runs_and_any_other_does_not(made: tuple[Path, bytes], tmp_path: Path) -> None:
    import torch

    from services.worker.engines.torch import load

    program, package = made
    header = dataclasses.replace(
        HEADER, source=digest(program), version=str(torch.__version__), architecture=architecture(torch, "cpu")
    )
    plan = tmp_path / "plan"
    x = np.arange(8, dtype=np.float32).reshape(2, 4)

    def answer(data: bytes, means: Means = MEANS) -> Any:
        plan.write_bytes(data)
        return load({"model": program, "plan-cpu": plan}, MANIFEST, 1, means).run({"x": x})["y"]

    good = wrap(header, package, KEY)
    np.testing.assert_array_equal(answer(good), -x[:, :3])
    np.testing.assert_array_equal(answer(good, NOTHING), x[:, :3])
    other = wrap(dataclasses.replace(header, version="1.0"), package, KEY)
    np.testing.assert_array_equal(answer(other), x[:, :3])
    for wrong in (package, good[:-1] + bytes([good[-1] ^ 1])):
        with pytest.raises(InvalidManifest, match=r"files\.plan-cpu"):
            answer(wrong)
