"""Manifests and files for tests that load a model without a registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format

from penstock.v1 import manifest_pb2 as pb


def manifest_of(folder: Path) -> tuple[pb.Manifest, dict[str, Path]]:
    """The manifest of a folder that tests.harness.models wrote, and its files by role."""
    return of_document(yaml.safe_load((folder / "model.yaml").read_text()), folder)


def of_document(document: dict[str, Any], folder: Path) -> tuple[pb.Manifest, dict[str, Path]]:
    """The same from a model.yaml's content."""
    manifest = json_format.ParseDict(document, pb.Manifest())
    return manifest, {role: folder / path for role, path in manifest.files.items()}


def spec(name: str, datatype: str, *shape: int) -> pb.TensorSpec:
    """A tensor of a manifest."""
    return pb.TensorSpec(name=name, datatype=datatype, shape=shape)
