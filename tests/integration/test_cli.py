"""The command as people and scripts run it: a process of its own against real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from penstock import errors
from penstock.oip import inference_pb2 as oip
from penstock.v1 import cluster_pb2 as cluster
from tests.harness.small_gateway import SmallGateway, manifest, small_gateway

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Runs `penstock` in a folder."""

    def __init__(self, gateway: SmallGateway, folder: Path) -> None:
        self.folder = folder
        self._environment = {**os.environ, "PENSTOCK_ADDRESS": gateway.address, "PYTHONPATH": str(ROOT)}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            "-m",
            "penstock.cli",
            *arguments,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def __call__(self, *arguments: str, stdin: str = "") -> Outcome:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 120)
        assert process.returncode is not None
        return Outcome(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def gateway() -> AsyncIterator[SmallGateway]:
    async with small_gateway() as running:
        yield running


@pytest.fixture
def penstock(gateway: SmallGateway, tmp_path: Path) -> Shell:
    (tmp_path / "model").mkdir()
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    onnx.save(helper.make_model(graph), str(tmp_path / "model" / "digits.onnx"))
    return Shell(gateway, tmp_path)


async def test_the_commands_of_the_documentation(penstock: Shell) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    block = re.search(r"```console\n(.*?)```", text, re.S)
    assert block is not None
    (penstock.folder / "deployment.yaml").write_text("deployments: [{model: digits, version: prod, replicas: 1}]")
    lines = [line.removeprefix("$ penstock ") for line in block.group(1).splitlines()]
    assert len(lines) > 10
    shown = {}
    for line in lines:
        outcome = await penstock(*shlex.split(line))
        assert outcome.code == 0, f"{line}\n{outcome.out}{outcome.err}"
        shown[line] = outcome
    assert "digits@1" in shown["versions digits"].out
    scaled = "digits@1  1 to 4  outstanding 2; mon-fri 08:00-18:00=2  selector zone=a          default"
    assert scaled in shown["deployments digits"].out
    dry = shown["deploy -f deployment.yaml --dry-run"].out
    assert "digits@1: changed\n  replicas: 1 to 4 -> 1\n" in dry
    assert "placement: selector zone=a -> as its manifest says" in dry
    assert "nothing was changed" in dry
    assert "digits@1: changed" in shown["deploy -f deployment.yaml --wait"].out
    assert "1/1    ready" in shown["status digits"].out
    assert "w-1     no       has 1 MiB free" in shown["explain digits"].out
    assert "would help: free 1023 MiB on w-1" in shown["explain digits"].out
    assert shown["infer digits --input x=[1,2,3]"].out.splitlines()[1].split(maxsplit=3) == [
        "x",
        "FP32",
        "1×3",
        "[[1.0, 2.0, 3.0]]",
    ]
    assert "by w-1, batch of 4" in shown["infer digits --input x=[1,2,3]"].err
    assert shown["infer digits@prod --input text='seven or one?' --json"].json["outputs"][0]["data"] == [
        ["seven or one?"]
    ]


async def test_a_file_is_applied_as_often_as_one_likes(penstock: Shell, gateway: SmallGateway) -> None:
    (penstock.folder / "model" / "model.json").write_text(manifest(files={"model": "digits.onnx"}))
    await penstock("publish", "model")
    (penstock.folder / "d.json").write_text(
        json.dumps({"deployments": [{"model": "digits", "scaling": {"max_replicas": 2, "rate": 5}, "tenant": "acme"}]})
    )
    dry = await penstock("deploy", "-f", "d.json", "--dry-run", "--json")
    assert dry.json["changes"][0]["change"] == "create"
    assert not gateway.catalogue.deployed
    for wanted in ("create", "none"):
        applied = await penstock("deploy", "-f", "d.json", "--json")
        (change,) = applied.json["changes"]
        assert (change["name"], change["version"], change["change"]) == ("digits", 1, wanted)
    assert gateway.catalogue.deployed["digits"].generation == 1
    shown = (await penstock("deployments", "--json")).json["deployments"][0]["versions"][0]
    assert (shown["scaling"]["max_replicas"], shown["tenant"], shown["placement"]) == (2, "acme", None)
    kept = await penstock("deploy", "digits", "--json")
    assert kept.json["deployment"]["versions"][0]["tenant"] == "acme"
    wrong = await penstock("deploy", "-f", "missing.yaml")
    assert (wrong.code, "missing.yaml" in wrong.err) == (1, True)


async def test_scripts_get_one_json_document(penstock: Shell, gateway: SmallGateway) -> None:
    (penstock.folder / "model" / "model.json").write_text(manifest(files={"model": "digits.onnx"}))
    gateway.catalogue.breaks = [0]
    published = await penstock("publish", "model", "--alias", "prod", "--deploy", "--replicas", "2", "--wait", "--json")
    assert published.err == ""
    assert published.json["version"]["version"] == 1
    assert published.json["version"]["aliases"] == ["prod"]
    assert published.json["alias"] == {"alias": "prod", "version": 1, "previous_version": 0}
    assert published.json["deployment"]["versions"][0]["replicas"] == 2
    models = await penstock("models", "--json")
    assert models.json["models"][0]["aliases"] == {"prod": 1}
    status = await penstock("--json", "status", "--wait")
    assert status.json["versions"][0]["replicas"][0]["state"] == "REPLICA_STATE_READY"
    request = {
        "id": "r-1",
        "inputs": [{"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 2]}],
        "parameters": {"p": 1},
        "outputs": [{"name": "x"}],
    }
    answer = await penstock("infer", "digits@1", "--request", "-", "--json", stdin=json.dumps(request))
    assert answer.json["id"] == "r-1"
    assert answer.json["outputs"] == [{"name": "x", "datatype": "INT8", "shape": [2], "data": [1, 2]}]
    assert answer.json["served"] == {"worker": "w-1", "batch_size": 4, "queue_us": 120}
    assert gateway.inference.requests[-1].parameters["p"].int64_param == 1


async def test_a_triton_repository_is_imported_and_published(penstock: Shell, gateway: SmallGateway) -> None:
    repository = penstock.folder / "repository"
    side = "data_type: TYPE_FP32 dims: [ 3 ]"
    for name, platform in (("first", "onnxruntime_onnx"), ("second", "tensorflow_graphdef")):
        (repository / name / "4").mkdir(parents=True)
        config = f'platform: "{platform}" input {{ name: "x" {side} }} output {{ name: "y" {side} }} max_batch_size: 8'
        (repository / name / "config.pbtxt").write_text(config)
        (repository / name / "4" / "model.onnx").write_bytes((penstock.folder / "model" / "digits.onnx").read_bytes())
    outcome = await penstock("import", "triton", "repository", "--publish", "--json")
    assert outcome.code == 1, outcome.err
    (version,) = outcome.json["versions"]
    assert (version["name"], version["version"], version["format"]) == ("first", 4, "onnx")
    assert "'tensorflow_graphdef' is not supported" in outcome.json["failed"]["second"]
    listed = await penstock("versions", "first", "--json")
    assert [entry["version"] for entry in listed.json["versions"]] == [4]
    again = await penstock("import", "triton", "repository/first")
    assert again.code == 1 and "has a model.yaml already; --force" in again.err
    assert (await penstock("import", "triton", "repository/first", "--force")).code == 0
    assert (await penstock("import", "triton", "model")).code == 1


async def test_failures_have_codes_and_hints(penstock: Shell, gateway: SmallGateway) -> None:
    (penstock.folder / "model" / "model.json").write_text(manifest(files={"model": "digits.onnx"}))
    missing = await penstock("versions", "nothing")
    assert (missing.code, missing.out) == (3, "")
    assert missing.err.startswith("penstock: no model is called 'nothing'\n  `penstock models`")
    await penstock("publish", "model")
    taken = await penstock("publish", "model", "--number", "1", "--json")
    assert taken.code == 5
    assert json.loads(taken.err)["error"]["code"] == "ALREADY_EXISTS"
    moved = await penstock("alias", "digits", "prod", "1", "--expect", "7")
    assert moved.code == 5
    await penstock("deploy", "digits")
    assert (await penstock("delete", "digits@1")).code == 5
    gateway.inference.failures = [errors.Unavailable("digits is loading")] * 3
    assert (await penstock("infer", "digits", "--input", "x=[1,2,3]")).code == 4
    wrong = await penstock("infer", "digits", "--input", "z=1")
    assert (wrong.code, wrong.err.splitlines()[0]) == (
        1,
        "penstock: no input is called 'z'; the model has: x, text, n, whole",
    )


async def test_waiting_shows_why_it_was_in_vain(penstock: Shell, gateway: SmallGateway) -> None:
    (penstock.folder / "model" / "model.json").write_text(manifest(files={"model": "digits.onnx"}))
    gateway.catalogue.ready = False
    gateway.catalogue.replica_state = cluster.REPLICA_STATE_PULLING
    await penstock("publish", "model", "--deploy")
    late = await penstock("status", "digits", "--wait", "--timeout", "3")
    assert late.code == 4
    assert "0/1" in late.out
    assert "digits@1: 0 of 1 ready; w-1 pulling" in late.err


async def test_watching_shows_every_change_and_ctrl_c_ends_it(penstock: Shell, gateway: SmallGateway) -> None:
    process = await penstock.start("status", "--watch", "--json")
    assert process.stdout is not None
    first = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    assert (first["leader"], first["versions"]) == ("s-1", [])
    await gateway.catalogue.change()
    await asyncio.wait_for(process.stdout.readline(), 60)
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out, err) == (130, b"", b"")


async def test_a_reader_that_leaves_is_no_crash(penstock: Shell) -> None:
    (penstock.folder / ".penstock" / "logs").mkdir(parents=True)
    (penstock.folder / ".penstock" / "logs" / "gateway.log").write_text("x" * 100 + "\n" + "y\n" * 100_000)
    process = await penstock.start("logs", "-n", "100000")
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.wait_for(process.stdout.readline(), 60)
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert await asyncio.wait_for(process.wait(), 60) == 1
    assert await process.stderr.read() == b""


async def test_following_shows_new_lines(penstock: Shell) -> None:
    folder = penstock.folder / ".penstock" / "logs"
    folder.mkdir(parents=True)
    (folder / "gateway.log").write_text('{"event": "old"}\n')
    process = await penstock.start("logs", "gateway", "--follow", "--json")
    assert process.stdout is not None
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), 60)) == {"event": "old"}
    with (folder / "gateway.log").open("a") as file:
        file.write('{"event": "new"}\n')
    assert json.loads(await asyncio.wait_for(process.stdout.readline(), 60)) == {"event": "new"}
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err) == (130, b"")


async def test_a_build_for_the_traffic_there_is(penstock: Shell, gateway: SmallGateway) -> None:
    compile_it = ("build", "digits", "--step", "compile batch.max=64 batch.seen=observed")
    gateway.inference.statistics = oip.ModelStatisticsResponse()
    refused = await penstock(*compile_it, "--json")
    assert refused.code == 1 and "no traffic of 'digits' was observed" in refused.err
    assert gateway.builds.asked == []
    stats = oip.ModelStatistics(name="digits", version="1")
    for size, count in ((1, 75), (8, 25)):
        stats.batch_stats.add(batch_size=size).compute_infer.count = count
    gateway.inference.statistics = oip.ModelStatisticsResponse(model_stats=[stats])
    assert (await penstock(*compile_it)).code == 0
    asked = gateway.builds.asked[0].spec.steps[0]
    assert json.loads(asked.parameters) == {"batch": {"max": 64, "seen": {"1": 7500, "8": 2500}}}
    target = ("--step", "compile", "--target", "architecture=sm_89 batch.seen=observed")
    assert (await penstock("build", "digits", *target)).code == 0
    assert json.loads(gateway.builds.asked[1].spec.targets[0])["batch"] == {"seen": {"1": 7500, "8": 2500}}
