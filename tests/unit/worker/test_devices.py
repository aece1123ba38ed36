"""Devices: what the operator declares, and what NVIDIA's tool says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.errors import InvalidArgument
from penstock.internal.v1.records_pb2 import DeviceRecord
from services.worker.devices import DECLARED, devices, parse_found, parse_used, used_by

MIB = 2**20


def test_what_is_declared_is_believed() -> None:
    assert devices(["gpu:100:A 100", "npu:7"]) == [
        DeviceRecord(index=0, kind="gpu", memory_bytes=100, name="A 100"),
        DeviceRecord(index=1, kind="npu", memory_bytes=7),
    ]
    assert devices(["none"]) == []


@pytest.mark.parametrize("bad", ["gpu", "gpu:", "gpu:x", "GPU:1", "gpu:1:a,b", "gpu:1:", "gpu:-1", "gpu:" + "9" * 19])
def test_what_cannot_be_a_device(bad: str) -> None:
    if re.fullmatch(DECLARED, bad) is None:
        with pytest.raises(InvalidArgument):
            devices([bad])
    else:
        assert bad == "gpu:1:" and devices([bad])[0].name == ""


def test_the_tools_answer_is_read_line_by_line() -> None:
    text = "0, 81559, NVIDIA H100 80GB HBM3\n1, [N/A], broken\nFailed to initialize NVML\n2, 1000, T4\n"
    assert [(found.index, found.kind, found.name) for found in parse_found(text)] == [
        (0, "gpu", "NVIDIA H100 80GB HBM3"),
        (2, "gpu", "T4"),
    ]
    assert parse_found(text)[1].memory_bytes == 950 * MIB
    assert parse_used("12, 300\n13, 5\n12, 20\n12, [N/A]\n", 12) == 320 * MIB
    assert parse_used("", 12) == 0


def test_a_tool_that_fails_or_is_not_there_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices([]) == [] and used_by(1) == 0
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, 1000, T4'\n")
    tool.chmod(0o755)
    assert [found.name for found in devices([])] == ["T4"]
    tool.write_text("#!/bin/sh\necho '0, 1000, T4'\nexit 9\n")
    assert devices([]) == []
