"""The whole suite as processes, started the way `make up` starts it, on free ports, over a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.ports import Ports
from deploy.local.suite import Suite
from penstock import Client
from tests.harness import models


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """One suite for all tests that leave it as they found it."""
    running = Suite(tmp_path_factory.mktemp("suite"), Ports.free(), trace_ratio=0.0)
    running.up()
    yield running
    assert running.down() == [], "these had to be killed: they did not drain"


@pytest.fixture(scope="session")
def client(suite: Suite) -> Iterator[Client]:
    """The SDK on the suite's gateway."""
    with Client(grpc_address(suite), timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where test models are written."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def identity(client: Client, folder: Path) -> str:
    """Every datatype, unchanged; on both workers."""
    return serve(client, models.identity(folder / "identity"), replicas=2)


@pytest.fixture(scope="session")
def add1(client: Client, folder: Path) -> str:
    """y = x + 1, FP32 [n, 16]; on both workers."""
    return serve(client, models.add_one(folder / "add1"), replicas=2)


@pytest.fixture(scope="session")
def slow(client: Client, folder: Path) -> str:
    """Takes 0.3 ms per unit of its input; on both workers."""
    return serve(client, models.slow(folder / "slow"), replicas=2)


@pytest.fixture(scope="session")
def anysize(client: Client, folder: Path) -> str:
    """Identity on FP32 of any length."""
    return serve(client, models.any_size(folder / "anysize"))


def serve(client: Client, path: Path, replicas: int = 1) -> str:
    """Publishes and deploys, waits until ready, returns the name."""
    version = client.publish(path)
    client.deploy(version.name, version.version, replicas=replicas, wait=120)
    return version.name


def grpc_address(suite: Suite) -> str:
    """host:port of the gateway's gRPC."""
    return f"127.0.0.1:{suite.ports['gateway_grpc']}"


def rest_address(suite: Suite) -> str:
    """host:port of the gateway's REST."""
    return f"127.0.0.1:{suite.ports['gateway_rest']}"
