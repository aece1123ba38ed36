"""What of a SavedModel's folder is uploaded when its manifest does not list the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.client import bundle
from penstock.errors import InvalidManifest


def folder(path: Path, *names: str) -> Path:
    (path / "variables").mkdir()
    for name in names:
        (path / name).write_bytes(b"x")
    (path / "model.yaml").write_text("schema: penstock/v1\nname: a\nformat: savedmodel\n")
    return path


def test_the_graph_and_every_shard_of_its_variables(tmp_path: Path) -> None:
    shards = [f"variables/variables.data-0000{number}-of-00002" for number in range(2)]
    found = bundle.read(folder(tmp_path, "saved_model.pb", "fingerprint.pb", "variables/variables.index", *shards))
    told = {
        "graph": "saved_model.pb", "index": "variables/variables.index", "weights": shards[0], "weights-2": shards[1],
    }  # fmt: skip
    assert {role: path.relative_to(tmp_path).as_posix() for role, path in found.files.items()} == told


def test_a_graph_without_variables_is_one_file(tmp_path: Path) -> None:
    assert list(bundle.read(folder(tmp_path, "saved_model.pb")).files) == ["graph"]


def test_a_folder_without_a_graph_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match=r"there is no saved_model\.pb beside the manifest"):
        bundle.read(folder(tmp_path, "variables/variables.index"))
