"""What of a Hugging Face folder is uploaded when its manifest does not list the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from penstock.client import bundle
from penstock.errors import InvalidManifest

MANIFEST = "schema: penstock/v1\nname: a\nformat: huggingface\n"


def folder(path: Path, *names: str, index: object = None, manifest: str = MANIFEST) -> Path:
    for name in names:
        (path / name).write_bytes(b"x")
    if index is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "model.yaml").write_text(manifest)
    return path


def test_config_weights_and_tokenizer(tmp_path: Path) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "README.md")
    read = bundle.read(folder(tmp_path, *names))
    told = {"config": "config.json", "weights": "model.safetensors", "tokenizer": "tokenizer.json"}
    assert {role: path.name for role, path in read.files.items()} == told
    assert yaml.safe_load(read.text) == {**yaml.safe_load(MANIFEST), "files": told}


@pytest.mark.parametrize("manifest", [MANIFEST, json.dumps(yaml.safe_load(MANIFEST))])
def test_shards_by_their_index(tmp_path: Path, manifest: str) -> None:
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    read = bundle.read(
        folder(tmp_path, "config.json", "a.safetensors", "b.safetensors", index=index, manifest=manifest)
    )
    told = {"config": "config.json", "weights": "a.safetensors", "weights-2": "b.safetensors"}
    assert {role: path.name for role, path in read.files.items()} == told
    assert yaml.safe_load(read.text)["files"] == told


def test_files_that_are_listed_are_those(tmp_path: Path) -> None:
    listed = MANIFEST + "files: {config: config.json, weights: b.safetensors}\n"
    read = bundle.read(folder(tmp_path, "config.json", "model.safetensors", "b.safetensors", manifest=listed))
    assert read.text == listed and read.files["weights"].name == "b.safetensors"


@pytest.mark.parametrize(
    ("names", "index", "words"),
    [
        (("model.safetensors",), None, "no config.json"),
        (("config.json", "pytorch_model.bin"), None, "pytorch_model.bin is a pickle, which is never read"),
        (("config.json",), None, "neither model.safetensors nor"),
        (("config.json",), {"weight_map": {}}, "names no file"),
        (("config.json",), {"weight_map": [1]}, "no `weight_map`"),
        (("config.json",), {"weight_map": {"x": {}}}, "no `weight_map`"),
        (("config.json",), {"weight_map": {"x": "/etc/passwd"}}, "is absolute"),
        (("config.json",), {"weight_map": {"x": "../key"}}, "no file '../key'"),
    ],
)
def test_what_is_missing_or_never_read(tmp_path: Path, names: tuple[str, ...], index: object, words: str) -> None:
    with pytest.raises(InvalidManifest, match=words):
        bundle.read(folder(tmp_path, *names, index=index))
