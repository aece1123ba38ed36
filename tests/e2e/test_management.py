"""From a folder on disk to an answer and away again, by SDK, command and REST."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.local.suite import ROOT, Suite
from penstock import Client, errors
from tests.e2e.conftest import grpc_address, rest_address
from tests.harness import models

ONES = np.ones((1, 16), np.float32)


def answer(client: Client, name: str, version: int | str | None = None) -> float:
    """What y = x + add gives for 1."""
    return float(client.infer(name, {"x": ONES}, version=version)["y"][0, 0])


def penstock(suite: Suite, *words: str, status: int = 0) -> Any:
    """Runs the command with --json; asserts its exit status and returns what it printed."""
    command = [sys.executable, "-m", "penstock.cli", "--address", grpc_address(suite), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else None


def test_a_new_version_takes_over_without_a_failed_call(client: Client, folder: Path) -> None:
    path = models.add_one(folder / "update", "update")
    client.publish(path)
    client.deploy("update", wait=120)
    assert answer(client, "update") == 2.0
    models.add_one(folder / "update", "update", add=10.0)
    assert client.publish(path).version == 2
    client.deploy("update", 2)
    seen = set()
    # Calls go on through the change; each gets the old answer or the new one, and none fails.
    for status in client.watch_status("update", timeout=60):
        seen.add(answer(client, "update"))
        versions = {each.version: each for each in status.versions}
        if set(versions) == {2} and versions[2].ready == 1 and answer(client, "update") == 11.0:
            break
    assert seen <= {2.0, 11.0}
    assert answer(client, "update") == 11.0
    with pytest.raises(errors.NotFound):
        answer(client, "update", 1)


def test_aliases_move_by_compare_and_set_and_route(client: Client, folder: Path) -> None:
    path = models.add_one(folder / "aliased", "aliased")
    client.publish(path)
    models.add_one(folder / "aliased", "aliased", add=5.0)
    client.publish(path)
    client.deploy("aliased", 1, wait=120)
    client.deploy("aliased", 2, keep_others=True, wait=120)
    assert client.set_alias("aliased", "prod", 1, expected=0) == 0
    wait_for(lambda: answer(client, "aliased", "prod") == 2.0)
    with pytest.raises(errors.Conflict):
        client.set_alias("aliased", "prod", 2, expected=2)
    assert client.set_alias("aliased", "prod", 2, expected=1) == 1
    wait_for(lambda: answer(client, "aliased", "prod") == 6.0)
    assert answer(client, "aliased") == 2.0, "keep_others leaves the default where it is"
    with pytest.raises(errors.InUse):
        client.delete_version("aliased", 2)
    client.undeploy("aliased", wait=120)
    with pytest.raises(errors.InUse, match="prod"):
        client.delete_version("aliased", 2)
    client.delete_alias("aliased", "prod")
    client.delete_version("aliased", 2)
    with pytest.raises(errors.NotFound):
        client.version("aliased", 2)


def wait_for(condition: Any) -> None:
    """The route follows an alias within a watch's delay; asks until it does."""
    import time

    deadline = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except errors.PenstockError:
            pass
        assert time.monotonic() < deadline, "the change did not arrive"
        time.sleep(0.02)


def test_publishing_the_same_again_is_the_same_version(client: Client, folder: Path) -> None:
    path = models.add_one(folder / "same", "same")
    assert client.publish(path).version == client.publish(path).version == 1


def test_the_command_goes_all_the_way(suite: Suite, client: Client, folder: Path) -> None:
    path = models.add_one(folder / "command", "command")
    (path / "model.yaml").unlink()
    init = [sys.executable, "-m", "penstock.cli", "init", str(path / "model.onnx"), "--name", "command"]
    subprocess.run([*init, "-o", str(path / "model.yaml")], check=True, cwd=ROOT, capture_output=True, timeout=120)
    published = penstock(suite, "publish", str(path))
    assert published["version"]["version"] == 1
    penstock(suite, "deploy", "command", "--wait")
    listed = penstock(suite, "models", "command")
    assert "command" in json.dumps(listed)
    values = json.dumps([[1.0] * 16])
    inferred = penstock(suite, "infer", "command", "--input", f"x={values}")
    assert "2.0" in json.dumps(inferred)
    assert "worker-" in json.dumps(penstock(suite, "status", "command"))
    penstock(suite, "undeploy", "command", "--wait")
    penstock(suite, "infer", "command", "--input", f"x={values}", status=3)


def test_management_over_rest(suite: Suite, client: Client, folder: Path) -> None:
    def call(method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        url = f"http://{rest_address(suite)}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
            return json.loads(text) if text else None

    client.publish(models.add_one(folder / "restful", "restful"))
    assert "restful" in json.dumps(call("GET", "/api/v1/models?query=restful"))
    call("PUT", "/api/v1/models/restful/aliases/prod", {"version": 1})
    call("PUT", "/api/v1/deployments/restful", {"version": "prod", "replicas": 1})
    client.wait_ready("restful", timeout=120)
    wait_for(lambda: answer(client, "restful", "prod") == 2.0)
    assert "restful" in json.dumps(call("GET", "/api/v1/status"))
    call("DELETE", "/api/v1/deployments/restful")
    document = call("GET", "/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert any(path.startswith("/v2/models/") and path.endswith("/infer") for path in document["paths"])
    with urllib.request.urlopen(f"http://{rest_address(suite)}/docs", timeout=60) as page:
        assert b"<html" in page.read().lower()


def test_lists_search_and_page(client: Client, folder: Path) -> None:
    for number in range(5):
        client.publish(models.add_one(folder / f"page-{number}", f"page-{number}"))
    found = [model.name for model in client.models("page-", page_size=2)]
    assert found == [f"page-{number}" for number in range(5)]
    tagged = [model.name for model in client.models(tags={"purpose": "test"})]
    assert set(found) <= set(tagged)
    assert not list(client.models(tags={"purpose": "none"}))
