"""Weights from safetensors files: what another library wrote is read, and what nobody could have written is refused."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from penstock.errors import InvalidManifest, PenstockError
from services.worker.engines import weights

KINDS = ("?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")


def tensors(seed: int, prefix: str = "") -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    made = {f"{prefix}{kind}": dice.integers(0, 2, (3, 5, 7)).astype(kind) for kind in KINDS}
    return {**made, f"{prefix}scalar": np.array(1.5, "<f4"), f"{prefix}empty": np.zeros((0, 4), "<f4")}


def by_hand(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("threads", [1, 4])
def test_every_tensor_of_every_shard_is_read(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PIECE", 100)  # many reads, and tensors across their borders
    want = {}
    for number in (1, 2, 10):
        part = tensors(number, f"{number}.")
        save_file(part, tmp_path / f"{number}", metadata={"format": "np"})
        want.update(part)
    files = {f"weights-{number}": tmp_path / f"{number}" for number in (10, 2, 1)} | {"model": tmp_path / "no"}
    paths = weights.shards(files)
    assert [path.name for path in paths] == ["1", "2", "10"]
    found = weights.load(paths, threads)
    assert found.keys() == want.keys()
    for name, array in found.items():
        assert array.dtype == want[name].dtype
        np.testing.assert_array_equal(array, want[name])
        assert not array.flags.writeable


def test_tensors_are_views_of_one_mapping(tmp_path: Path) -> None:
    save_file({"a": np.ones(1000, "<f4"), "b": np.ones(1000, "<f4")}, tmp_path / "w")
    found = weights.load([tmp_path / "w"])
    places = sorted(array.ctypes.data for array in found.values())
    assert places[1] - places[0] == 4000


def test_bfloat16_stays_as_it_is(tmp_path: Path) -> None:
    entry = {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}
    found = weights.load([by_hand(tmp_path / "w", {"x": entry}, b"\x80\x3f\x00\x40")])
    assert found["x"].tolist() == [0x3F80, 0x4000]


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"x": ENTRY}, bytes(7), "cut short"),
        ({"x": ENTRY}, bytes(9), "holds more"),
        ({"x": {**ENTRY, "data_offsets": [1, 9]}}, bytes(9), "does not begin"),
        ({"x": ENTRY, "y": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "does not begin"),
        ({"x": {**ENTRY, "shape": [3]}}, bytes(8), "header"),
        ({"x": {**ENTRY, "shape": [-2]}}, bytes(8), "header"),
        ({"x": {**ENTRY, "shape": [2.0]}}, bytes(8), "header"),
        ({"x": {**ENTRY, "dtype": "F8_E4M3"}}, bytes(8), "header"),
        ({"x": {**ENTRY, "data_offsets": [0]}}, bytes(8), "header"),
        ({"x": {"dtype": "F32"}}, bytes(8), "header"),
        ({"x": 3}, b"", "header"),
        ([], b"", "header"),
        (b"{", b"", "header"),
        (b"\xff" * 9, b"", "header"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=says):
        weights.load([by_hand(tmp_path / "w", header, data)])


def test_a_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    for data in (b"", b"1234567", struct.pack("<Q", 2**63), struct.pack("<Q", 100) + b"{}"):
        (tmp_path / "w").write_bytes(data)
        with pytest.raises(InvalidManifest, match="no safetensors file"):
            weights.load([tmp_path / "w"])


def test_a_tensor_has_one_place(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "w", {"x": ENTRY}, bytes(8))
    with pytest.raises(InvalidManifest, match="two files have the tensor 'x'"):
        weights.load([path, path])


def test_changed_files_never_break_the_reader(tmp_path: Path) -> None:
    save_file({"a": np.ones(10, "<f4"), "b": np.ones((2, 3), "<i8")}, tmp_path / "w")
    good, dice = (tmp_path / "w").read_bytes(), random.Random(4)
    for _ in range(300):
        changed = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            changed[dice.randrange(len(good) - 88)] = dice.randrange(256)
        (tmp_path / "w").write_bytes(changed)
        try:
            found = weights.load([tmp_path / "w"], 1)
        except PenstockError:
            continue
        assert sum(array.nbytes for array in found.values()) == 88


def test_weights_outlive_the_name_of_their_file(tmp_path: Path) -> None:
    path = by_hand(tmp_path / "w", {"x": ENTRY}, np.array([1, 2], "<f4").tobytes())
    found = weights.load([path])
    path.unlink()
    assert found["x"].tolist() == [1, 2]


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    by_hand(tmp_path / "w", {"x": ENTRY}, bytes(8))
    (tmp_path / "link").symlink_to(tmp_path / "w")
    with pytest.raises(PenstockError, match="cannot be opened"):
        weights.load([tmp_path / "link"])


def test_tensors_that_lie_askew_are_moved(tmp_path: Path) -> None:
    for pad in range(8):
        header = json.dumps({"x": ENTRY}).encode() + b" " * pad
        found = weights.load([by_hand(tmp_path / "w", header, np.array([1, 2], "<f4").tobytes())])
        assert found["x"].flags.aligned and found["x"].tolist() == [1, 2]
