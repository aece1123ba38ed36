"""What an import may bring along. Each question is asked of a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from .source import ROOT

ENGINES = ("onnxruntime", "torch", "tensorrt", "pycuda")


def loaded_by(*modules: str) -> set[str]:
    """Names of all modules that importing these loads."""
    script = f"import json, sys\nimport {', '.join(modules)}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["penstock", "penstock.errors", "penstock.names", "penstock.signals"])
def test_the_lowest_floor_needs_nothing(module: str) -> None:
    assert not loaded_by(module) & {"grpc", "google.protobuf", "numpy", "asyncio", "structlog"}


def test_tensors_load_numpy_when_used() -> None:
    assert "numpy" not in loaded_by("penstock.tensors")


def test_the_sdk_needs_grpc_alone() -> None:
    loaded = loaded_by("penstock.client", "penstock.client.aio", "penstock.client.sync")
    assert "grpc" in loaded
    assert not loaded & {"numpy", "structlog", "opentelemetry", "prometheus_client", "yaml", "rich", "sqlalchemy"}
    assert not {name for name in loaded if name.startswith(("penstock.kit", "penstock.cluster", "services"))}


@pytest.mark.parametrize("service", ["gateway", "registry", "scheduler", "worker"])
def test_no_service_loads_an_engine_into_its_own_process(service: str) -> None:
    """Engines live in child processes; a crash or a leak there is not the service's."""
    present = {name for name in ENGINES if find_spec(name)}
    assert "onnxruntime" in present, "the test would show nothing"
    assert not loaded_by(f"services.{service}.__main__", f"services.{service}.app") & present


@pytest.mark.parametrize("service", ["gateway", "scheduler", "worker"])
def test_only_the_registry_knows_sql(service: str) -> None:
    assert "sqlalchemy" not in loaded_by(f"services.{service}.app")
