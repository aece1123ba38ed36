"""Builds over real gRPC: jobs, their results, their gates, cancelling, following, and a registry that is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from penstock import errors
from penstock.channel import raising
from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2, models_pb2
from services.registry.build import engines
from tests.harness.build_service import Registry, running

NOBODYS = "sha256:" + "0" * 64
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    async with running(tmp_path) as made:
        yield made


async def test_a_build_publishes_what_it_made(registry: Registry) -> None:
    await registry.publish()
    asked = await registry.build("append", "gate", text="!!")
    assert asked.state == pb.BUILD_STATE_PENDING and asked.creator == "local"
    build, said = await registry.ended(asked.id)
    assert (build.state, build.reason) == (pb.BUILD_STATE_SUCCEEDED, "")
    assert (build.gate, build.result_version) == (pb.GATE_VERDICT_PASSED, 2)
    assert [(step.id, step.state, step.cached) for step in build.steps] == [
        ("append", pb.BUILD_STATE_SUCCEEDED, False), ("gate", pb.BUILD_STATE_SUCCEEDED, False),
    ]  # fmt: skip
    assert build.steps[0].tools == {"tool": "1"} and json.loads(build.steps[0].report)["bytes_after"]
    made, source = await registry.version(2), await registry.version(1)
    assert made.artifacts["model"] == build.steps[0].outputs["model"] != source.artifacts["model"]
    assert made.manifest.lineage.parents == ["add1@1"] and made.manifest.lineage.notes["build"] == build.id
    assert made.manifest.lineage.metrics["append.bytes_after"] == source.artifacts["model"].size_bytes + 4
    assert "appending 2 bytes" in said and "published add1@2" in said and "the gate passed" in said
    assert not list((registry.folder / "builds" / "scratch").iterdir())
    with raising():
        await registry.deployments.Deploy(models_pb2.DeployRequest(name="add1", version="2"))


async def test_the_same_again_is_found(registry: Registry) -> None:
    await registry.publish()
    first, _ = await registry.ended((await registry.build("append")).id)
    again, _ = await registry.ended((await registry.build("append")).id)
    assert again.steps[0].cached and again.steps[0].key == first.steps[0].key
    assert again.steps[0].outputs == first.steps[0].outputs
    other, _ = await registry.ended((await registry.build("append", text="other")).id)
    assert not other.steps[0].cached and other.steps[0].key != first.steps[0].key


async def test_a_request_key_makes_a_retry_safe(registry: Registry) -> None:
    await registry.publish()
    first = await registry.build("append", request_key="k")
    assert (await registry.build("append", request_key="k")).id == first.id
    with pytest.raises(errors.Conflict, match="request_key"):
        await registry.build("append", "gate", request_key="k")
    listed = await registry.builds.ListBuilds(pb.ListBuildsRequest(name="add1"))
    assert [build.id for build in listed.builds] == [first.id]


@pytest.mark.parametrize(
    ("step", "parameters", "words"),
    [
        ("nothing", {}, "there is no step 'nothing'"),
        ("append", {"txet": "!"}, "append.txet: unknown"),
        ("append", {"text": 5}, "append.text: a text is needed"),
    ],
)
async def test_what_cannot_be_done_is_refused_at_once(
    registry: Registry, step: str, parameters: dict[str, Any], words: str
) -> None:
    await registry.publish()
    with pytest.raises(errors.InvalidArgument, match=words):
        await registry.build(step, **parameters)


async def test_a_step_that_fails_fails_the_build(registry: Registry) -> None:
    await registry.publish()
    build, _ = await registry.ended((await registry.build("refuse", "append")).id)
    assert build.state == pb.BUILD_STATE_FAILED and build.result_version == 0
    assert build.reason == "step refuse: operator Foo cannot be converted; replace it"
    assert [step.state for step in build.steps] == [pb.BUILD_STATE_FAILED, pb.BUILD_STATE_PENDING]
    # The next one has its turn all the same.
    after, _ = await registry.ended((await registry.build("append")).id)
    assert after.state == pb.BUILD_STATE_SUCCEEDED


async def test_a_failed_gate_holds_the_version_back(registry: Registry) -> None:
    await registry.publish()
    spec = manifest_pb2.BuildSpec()
    spec.steps.add(step="append")
    spec.steps.add(step="gate", parameters='{"passed": false}')
    asked = await registry.builds.CreateBuild(pb.CreateBuildRequest(name="add1", spec=spec))
    build, _ = await registry.ended(asked.build.id)
    assert (build.gate, build.result_version) == (pb.GATE_VERDICT_FAILED, 2)
    assert list(build.failed_checks) == ["numerics: differs by 0.5, tolerance 0.001"]
    with (
        pytest.raises(errors.GateFailed, match=r"version 2 did not pass its gate \(numerics: differs by 0.5"),
        raising(),
    ):
        await registry.deployments.Deploy(models_pb2.DeployRequest(name="add1", version="2"))
    # The newest version is the one that is held back; naming none changes nothing.
    with pytest.raises(errors.GateFailed), raising():
        await registry.deployments.Deploy(models_pb2.DeployRequest(name="add1"))
    assert not (await registry.deployments.ListDeployments(models_pb2.ListDeploymentsRequest())).deployments
    with raising():
        request = models_pb2.DeployRequest(name="add1", version="2", override_gate="the tolerance is too strict")
        await registry.deployments.Deploy(request)
    (record,) = (await registry.builds.ListOverrides(pb.ListOverridesRequest(name="add1"))).overrides
    assert (record.version, record.who, record.reason) == (2, "local", "the tolerance is too strict")
    assert record.build_id == build.id and list(record.failed_checks) == list(build.failed_checks)
    assert record.time.seconds > 1_700_000_000


async def test_an_engine_is_found_by_everything_it_depends_on(registry: Registry) -> None:
    await registry.publish()
    build, _ = await registry.ended((await registry.build("compile", "gate")).id)
    assert build.result_version == 0, "a plan is no new version"
    (engine,) = build.engines
    wanted = pb.FindEngineRequest(
        source_digest=build.source_digest,
        builder="none",
        builder_version="1",
        architecture="any",
        precision="fp32",
        profile="1",
    )
    assert (await registry.builds.FindEngine(wanted)).engine == engine
    for field in ("builder", "builder_version", "architecture", "precision", "profile"):
        other = pb.FindEngineRequest()
        other.CopyFrom(wanted)
        setattr(other, field, "another")
        assert not (await registry.builds.FindEngine(other)).HasField("engine"), field


async def test_who_leaves_precision_or_profile_open_gets_the_newest_that_runs_there(registry: Registry) -> None:
    await registry.publish()
    build, _ = await registry.ended((await registry.build("compile")).id)
    (engine,) = build.engines
    wanted = {"source_digest": build.source_digest, "builder": "none", "builder_version": "1", "architecture": "any"}
    for more in ({}, {"precision": "fp32"}, {"profile": "1"}):
        assert (await registry.builds.FindEngine(pb.FindEngineRequest(**wanted, **more))).engine == engine
    for change in (
        {"builder_version": "2"},
        {"architecture": "sm90"},
        {"precision": "int8"},
        {"source_digest": NOBODYS},
    ):
        miss = pb.FindEngineRequest(**{**wanted, **change})
        assert not (await registry.builds.FindEngine(miss)).HasField("engine"), change


def test_of_several_engines_the_newest_that_runs_on_the_architecture() -> None:
    def engine(seconds: int, architecture: str, **more: str) -> pb.Engine:
        same = {"source_digest": NOBODYS, "builder": "tensorrt-rtx", "builder_version": "1", "precision": "fp32"}
        made = pb.Engine(architecture=architecture)
        for field, text in {**same, **more}.items():
            setattr(made, field, text)
        made.create_time.FromSeconds(seconds)
        return made

    found = [
        engine(1, "sm80,sm89"), engine(4, "sm120+"), engine(3, "sm86+"), engine(2, "sm89"),
        engine(5, "sm89", builder="tensorrt"), engine(6, "sm89", source_digest="sha256:1"),
    ]  # fmt: skip
    same = {"source_digest": NOBODYS, "builder": "tensorrt-rtx", "builder_version": "1"}

    def newest(architecture: str, **more: str) -> int:
        best = engines.newest(found, pb.FindEngineRequest(**same, **more, architecture=architecture))
        return 0 if best is None else best.create_time.seconds

    assert [newest(each) for each in ("sm89", "sm80", "sm86", "sm90", "sm120", "sm75")] == [3, 1, 3, 3, 4, 0]
    assert newest("sm89", precision="int8") == 0
    assert [newest(each) for each in ("", "smx", "sm_89", "sm" + "9" * 99, "sm\u0668\u0669")] == [0] * 5
    assert engines.newest([], pb.FindEngineRequest(**same)) is None


async def test_a_manifest_asks_for_its_build(registry: Registry) -> None:
    answer = await registry.publish("build: {steps: [{step: append, parameters: {text: auto}}]}\n")
    build, _ = await registry.ended(answer.build_id)
    assert (build.state, build.source_version, build.result_version) == (pb.BUILD_STATE_SUCCEEDED, 1, 2)
    assert not (await registry.version(2)).manifest.HasField("build"), "a result builds nothing further"


async def test_a_manifest_that_asks_for_nonsense_has_a_failed_build(registry: Registry) -> None:
    answer = await registry.publish("build: {steps: [{step: nothing}]}\n")
    assert answer.version.version == 1
    build, _ = await registry.ended(answer.build_id)
    assert build.state == pb.BUILD_STATE_FAILED and "there is no step" in build.reason


async def test_cancelling(registry: Registry) -> None:
    await registry.publish()
    runs, waits = await registry.build("hang"), await registry.build("append")
    async with asyncio.timeout(30):
        async for answer in registry.builds.WatchBuild(pb.WatchBuildRequest(id=runs.id)):
            if any(line.text == "hanging" for line in answer.lines):
                break
    assert (await registry.builds.CancelBuild(pb.CancelBuildRequest(id=waits.id))).build.state == (
        pb.BUILD_STATE_CANCELLED
    )
    await registry.builds.CancelBuild(pb.CancelBuildRequest(id=runs.id))
    build, _ = await registry.ended(runs.id)
    assert build.state == pb.BUILD_STATE_CANCELLED
    assert not list((registry.folder / "builds" / "scratch").iterdir())
    again = await registry.builds.CancelBuild(pb.CancelBuildRequest(id=runs.id))
    assert again.build.state == pb.BUILD_STATE_CANCELLED


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async with running(tmp_path, waiting=1, at_once=0) as registry:
        await registry.publish()
        await registry.build("append")
        with pytest.raises(errors.ResourceExhausted, match="1 jobs wait already"):
            await registry.build("gate")


async def test_watching_goes_on_from_an_offset(registry: Registry) -> None:
    await registry.publish()
    build, said = await registry.ended((await registry.build("append", "gate")).id)
    request = pb.WatchBuildRequest(id=build.id, offset=2)
    rest = [line async for answer in registry.builds.WatchBuild(request) for line in answer.lines]
    assert [line.text for line in rest] == said[2:] and rest[0].offset == 2 and rest[0].step_id == "gate"


async def test_what_is_not_there(registry: Registry) -> None:
    for call in (
        registry.builds.GetBuild(pb.GetBuildRequest(id="0" * 32)),
        registry.builds.CancelBuild(pb.CancelBuildRequest(id="0" * 32)),
        registry.builds.CreateBuild(pb.CreateBuildRequest(name="nobody")),
    ):
        with pytest.raises(errors.NotFound), raising():
            await call
    with pytest.raises(errors.InvalidArgument), raising():
        await registry.builds.GetBuild(pb.GetBuildRequest(id="../../etc/passwd"))


async def test_pages(registry: Registry) -> None:
    await registry.publish()
    ids = [(await registry.ended((await registry.build("append", text=str(n))).id))[0].id for n in range(3)]
    first = await registry.builds.ListBuilds(pb.ListBuildsRequest(page_size=2))
    second = await registry.builds.ListBuilds(pb.ListBuildsRequest(page_size=2, page_token=first.next_page_token))
    assert [build.id for build in (*first.builds, *second.builds)] == ids[::-1] and not second.next_page_token


async def test_a_registry_that_is_killed_goes_on(tmp_path: Path) -> None:
    """The first step is done, the second hangs; after kill -9 the next registry runs the second alone."""
    script = f"""
import asyncio, pathlib
from penstock.v1 import builds_pb2 as pb
from tests.harness.build_service import running
async def main():
    async with running(pathlib.Path({str(tmp_path)!r})) as registry:
        await registry.publish()
        build = await registry.build("append", "hang")
        async for answer in registry.builds.WatchBuild(pb.WatchBuildRequest(id=build.id)):
            if any(line.text == "hanging" for line in answer.lines):
                print(build.id, flush=True)
asyncio.run(main())
"""
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    assert first.stdout is not None
    async with asyncio.timeout(60):
        build_id = (await first.stdout.readline()).decode().strip()
    first.send_signal(signal.SIGKILL)
    await first.wait()
    async with running(tmp_path) as registry:
        hanging = 0
        async with asyncio.timeout(30):
            async for answer in registry.builds.WatchBuild(pb.WatchBuildRequest(id=build_id)):
                hanging += sum(line.text == "hanging" for line in answer.lines)
                if hanging == 2:
                    break
        await registry.builds.CancelBuild(pb.CancelBuildRequest(id=build_id))
        build, said = await registry.ended(build_id)
        assert build.state == pb.BUILD_STATE_CANCELLED
        assert said.count("appending 1 bytes") == 1 and said.count("hanging") == 2
        assert "going on after 1 steps that were done before" in said
