"""Builds by the command and by both faces of the SDK, against a real registry."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock import errors
from penstock.client import AsyncClient, Client
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2
from tests.harness.build_service import Registry, running

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running(tmp_path) as made:
        await made.publish()
        yield made


async def penstock(registry: Registry, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "penstock.cli", *arguments,
        cwd=registry.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PENSTOCK_ADDRESS": registry.address, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_build_list_show_logs(registry: Registry) -> None:
    code, out, err = await penstock(registry, "build", "add1", "--step", "append text=xy", "--step", "gate", "--wait")
    assert code == 0, err
    assert "append: appending 2 bytes" in err and "gate passed" in out and "next: penstock deploy add1@2" in out
    code, out, _ = await penstock(registry, "builds", "add1")
    assert code == 0 and re.search(r"add1@1 +done +append, gate +passed +add1@2", out)
    build_id = out.splitlines()[1].split()[0]
    code, out, _ = await penstock(registry, "builds", "logs", build_id[:6])
    assert code == 0 and "append: appending 2 bytes" in out and "published add1@2" in out
    code, out, _ = await penstock(registry, "builds", "show", build_id, "--json")
    assert json.loads(out)["build"]["steps"][0]["tools"] == {"tool": "1"}
    assert (await penstock(registry, "builds", "show", "ffff"))[0] == 3
    assert (await penstock(registry, "builds", "what", "is", "this"))[0] == 2


async def test_a_failed_gate_and_its_override(registry: Registry) -> None:
    code, out, _ = await penstock(
        registry, "build", "add1", "--step", "append", "--step", "gate passed=false", "--wait"
    )
    assert code == 1 and "gate failed: numerics: differs by 0.5" in out
    code, _, err = await penstock(registry, "deploy", "add1@2")
    assert code == 5 and "did not pass its gate" in err and "--override-gate" in err
    assert (await penstock(registry, "deploy", "add1@2", "--override-gate", "it is urgent"))[0] == 0
    _, out, _ = await penstock(registry, "audit")
    assert re.search(r"add1@2 .* local +it is urgent +numerics: differs", out)


async def test_a_file_of_steps(registry: Registry) -> None:
    (registry.folder / "set").write_text("an evaluation set")
    (registry.folder / "build.yaml").write_text(
        "steps:\n- {step: append, id: first, parameters: {text: a}}\n"
        "- {step: append, inputs: {model: source.model}}\nfiles: {samples: set}\n"
    )
    code, out, err = await penstock(registry, "build", "add1@1", "-f", "build.yaml", "--wait", "--json")
    assert code == 0, err
    steps = json.loads(out)["build"]["steps"]
    assert [step["id"] for step in steps] == ["first", "append"]
    (registry.folder / "build.yaml").write_text("steps: [append]\n")
    assert (await penstock(registry, "build", "add1", "-f", "build.yaml"))[0] == 1


async def test_cancelling(registry: Registry) -> None:
    _, out, _ = await penstock(registry, "build", "add1", "--step", "hang", "--json")
    build_id = json.loads(out)["build"]["id"]
    assert (await penstock(registry, "builds", "cancel", build_id))[0] == 0
    build, _ = await registry.ended(build_id)
    assert build.state == pb.BUILD_STATE_CANCELLED


async def test_the_sdk(registry: Registry) -> None:
    spec = manifest_pb2.BuildSpec(steps=[manifest_pb2.BuildStep(step="compile"), manifest_pb2.BuildStep(step="gate")])
    lines: list[str] = []
    async with AsyncClient(registry.address) as client:
        build = await client.build(
            "add1", 1, spec=spec, wait=60, on_line=lambda line: lines.append(line.text), request_key="k"
        )
        assert build.state == pb.BUILD_STATE_SUCCEEDED and "the gate passed" in lines
        assert (await client.build("add1", 1, spec=spec, request_key="k")).id == build.id
        with pytest.raises(errors.DeadlineExceeded, match="it goes on"):
            hang = manifest_pb2.BuildSpec(steps=[manifest_pb2.BuildStep(step="hang")])
            await client.build("add1", spec=hang, wait=0.5)
        (hangs,) = [one async for one in client.builds("add1") if one.steps[0].step == "hang"]
        await client.cancel_build(hangs.id)
        key: dict[str, Any] = {
            "builder": "none",
            "builder_version": "1",
            "architecture": "any",
            "precision": "fp32",
            "profile": "1",
        }
        found = await client.find_engine(build.source_digest, **key)
        assert found == build.engines[0]
        assert await client.find_engine(build.source_digest, **{**key, "precision": "int8"}) is None

    def blocking() -> None:
        with Client(registry.address) as client:
            assert client.get_build(build.id) == build
            assert [one.id for one in client.builds("add1", page_size=1)][-1] == build.id
            said = [line.text for answer in client.watch_build(build.id) for line in answer.lines]
            assert said == lines
            assert client.ended_build(build) == build
            assert client.overrides() == []
            assert client.find_engine(build.source_digest, **key) == found

    await asyncio.to_thread(blocking)
