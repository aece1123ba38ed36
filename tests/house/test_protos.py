"""Generated code is fresh, and asks for no newer libraries than pyproject.toml does."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

from .source import ROOT


def floors() -> dict[str, set[str]]:
    """The lowest version of each requirement of the SDK and of the services."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["service"], *extras["dev"]]]
    return {each.name: {spec.version for spec in each.specifier if spec.operator in (">=", "==")} for each in wanted}


def demanded(suffix: str, pattern: str) -> set[str]:
    """What the generated modules say of themselves, all of them."""
    found: set[str] = set()
    for path in (ROOT / "penstock").rglob(f"*{suffix}.py"):
        matches = re.findall(pattern, path.read_text())
        assert matches, f"{path} does not say what it demands"
        found.update(matches)
    return found


def test_generated_code_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "protos" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_floor_of_protobuf_is_the_generators() -> None:
    assert floors()["protobuf"] == demanded("_pb2", r"# Protobuf Python Version: ([\d.]+)")


def test_the_floor_of_grpcio_is_the_generators() -> None:
    versions = demanded("_pb2_grpc", r"GRPC_GENERATED_VERSION = '([\d.]+)'")
    assert floors()["grpcio"] == versions == floors()["grpcio-tools"]
    for name in ("grpcio-health-checking", "grpcio-reflection"):
        assert {Version(each) for each in floors()[name]} <= {Version(each) for each in versions}


def test_the_pins_are_not_older_than_the_floors() -> None:
    lines = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    pins = {Requirement(line).name: Requirement(line) for line in lines if line and not line.startswith("#")}
    for name in ("grpcio", "protobuf"):
        (pin,) = pins[name].specifier
        assert all(Version(pin.version) >= Version(floor) for floor in floors()[name])
