"""Devices: what the operator declares, and what NVIDIA's tool says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.errors import InvalidArgument
from penstock.internal.v1.records_pb2 import DeviceRecord
from services.worker.devices import (
    DECLARED,
    devices,
    gpu_of,
    names,
    parse_addresses,
    parse_found,
    parse_slices,
    parse_used,
    used_by,
    with_slices,
)

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


# What the tool printed on machines with MIG on (R450 and R535; the UUIDs are changed).
LISTED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-11111111-2222-3333-4444-555555555555)
  MIG 3g.20gb     Device  0: (UUID: MIG-aaaaaaaa-0000-5000-8000-000000000001)
  MIG 1g.5gb      Device  1: (UUID: MIG-aaaaaaaa-0000-5000-8000-000000000002)
  MIG 1c.2g.10gb  Device  2: (UUID: MIG-aaaaaaaa-0000-5000-8000-000000000003)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-66666666-2222-3333-4444-555555555555)
GPU 2: NVIDIA A100-SXM4-40GB (UUID: GPU-77777777-2222-3333-4444-555555555555)
  MIG 1g.5gb+me   Device  0: (UUID: MIG-GPU-77777777-2222-3333-4444-555555555555/1/0)
  MIG something else
"""
TABLE = "0, 40960, NVIDIA A100-SXM4-40GB\n1, 40960, NVIDIA A100-SXM4-40GB\n2, 40960, NVIDIA A100-SXM4-40GB\n"


def test_a_gpu_that_is_cut_into_slices_is_offered_in_slices() -> None:
    offered = with_slices(parse_found(TABLE), parse_slices(LISTED))
    assert [(device.index, device.name) for device in offered] == [
        (1, "NVIDIA A100-SXM4-40GB"),
        (100, "NVIDIA A100-SXM4-40GB MIG 3g.20gb"),
        (101, "NVIDIA A100-SXM4-40GB MIG 1g.5gb"),
        (102, "NVIDIA A100-SXM4-40GB MIG 1c.2g.10gb"),
        (300, "NVIDIA A100-SXM4-40GB MIG 1g.5gb+me"),
    ]
    assert [device.memory_bytes for device in offered[1:]] == [19 * 10**9, 475 * 10**7, 95 * 10**8, 475 * 10**7]
    assert [gpu_of(device.index) for device in offered] == [1, 0, 0, 0, 2]


def test_slices_that_nobody_could_use_are_left_out() -> None:
    assert parse_slices("  MIG 1g.5gb Device 0: (UUID: MIG-1)\n") == []  # of no GPU
    assert parse_slices("No devices were found\n") == []
    assert with_slices([], parse_slices(LISTED)) == []
    assert [device.index for device in with_slices(parse_found(TABLE), [])] == [0, 1, 2]


def test_cuda_knows_slices_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    (tmp_path / "list").write_text(LISTED)
    (tmp_path / "table").write_text(TABLE)
    tool.write_text(f'#!/bin/sh\n[ "$1" = -L ] && exec /bin/cat {tmp_path}/list\nexec /bin/cat {tmp_path}/table\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    offered = devices([])
    assert [device.index for device in offered] == [1, 100, 101, 102, 300]
    assert names(offered) == {
        100: "MIG-aaaaaaaa-0000-5000-8000-000000000001",
        101: "MIG-aaaaaaaa-0000-5000-8000-000000000002",
        102: "MIG-aaaaaaaa-0000-5000-8000-000000000003",
        300: "MIG-GPU-77777777-2222-3333-4444-555555555555/1/0",
    }
    assert names(offered[:1]) == {}


def test_addresses_are_read_line_by_line() -> None:
    text = "0, 00000000:17:00.0\n1, 00000000:CA:00.0\n2, [N/A]\n"
    assert parse_addresses(text) == {0: "00000000:17:00.0", 1: "00000000:CA:00.0"}
