"""Runs the Python blocks of docs/sdk.md against a small gateway: what the page shows, works."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.small_gateway import manifest, small_gateway

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sdk.md").read_text(), re.S)


def test_the_page_has_blocks() -> None:
    assert len(BLOCKS) >= 6


@pytest.mark.parametrize("number", range(len(BLOCKS)))
async def test_block(number: int, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.yaml").write_text(manifest(files={"model": "m.onnx"}))
    (tmp_path / "model" / "m.onnx").write_bytes(b"weights")
    async with small_gateway() as gateway:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-c",
            BLOCKS[number].replace("127.0.0.1:8001", gateway.address),
            cwd=tmp_path,
            env={**os.environ, "PENSTOCK_ADDRESS": gateway.address, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    assert out or number in (1, 2)
