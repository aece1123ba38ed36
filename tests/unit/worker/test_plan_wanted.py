"""Which plan a manifest needs, what it is compiled for, and whose plan will do, as values."""

from __future__ import annotations

import dataclasses
import json

import pytest

from penstock.plans import PlanHeader, Profile
from penstock.v1 import manifest_pb2 as pb
from services.worker.engines.trt.matching import Target
from services.worker.plans.wanted import Wanted, capability, wanted
from tests.harness.engines import spec

SOURCE = "sha256:" + "ab" * 32
RTX = Target("tensorrt-rtx", "1.7.1.116", "sm89")


def manifest(most: int = 32, *preferred: int, **more: object) -> pb.Manifest:
    batching = pb.Batching(max_batch_size=most, preferred_batch_size=preferred)
    return pb.Manifest(name="m", format="tensorrt", batching=batching, inputs=[spec("x", "FP32", 4)], **more)  # type: ignore[arg-type]


def made(*profiles: Profile, **more: str) -> PlanHeader:
    said = {"source": SOURCE, "builder": RTX.builder, "version": RTX.version, "architecture": "sm89"}
    return PlanHeader(**{**said, **more}, precision="fp32", created="2026-11-25T00:00:00Z", profiles=profiles)


@pytest.mark.parametrize(
    ("most", "preferred", "shapes"),
    [
        (32, (), ((1, 4), (32, 4), (32, 4))),
        (32, (4, 16), ((1, 4), (16, 4), (32, 4))),
        (32, (64,), ((1, 4), (32, 4), (32, 4))),  # more than a batch can have
        (1, (), ((1, 4), (1, 4), (1, 4))),
        (0, (), ((4,), (4,), (4,))),
    ],
)
def test_shapes_follow_the_batching(most: int, preferred: tuple[int, ...], shapes: object) -> None:
    assert wanted(manifest(most, *preferred), SOURCE).inputs == {"x": shapes}


def test_a_dimension_of_any_size_is_said_by_the_manifests_own_compile_step() -> None:
    made = manifest()
    made.inputs.append(spec("ids", "INT64", -1))
    assert "ids" not in wanted(made, SOURCE).inputs
    made.build.steps.add(step="quantise", parameters=json.dumps({"sizes": {"other": [1, 2, 3]}}))
    made.build.steps.add(step="compile", parameters=json.dumps({"sizes": {"seq": [1, 32, 128]}}))
    assert wanted(made, SOURCE).sizes == {"seq": (1, 32, 128)}


@pytest.mark.parametrize(
    "parameters", ["", "{", "[]", '{"sizes": 5}', '{"sizes": {"seq": [1, 2]}}', '{"sizes": {"seq": [1, true, "3"]}}']
)
def test_sizes_that_are_none_are_left_to_the_build_that_refuses_them(parameters: str) -> None:
    made = manifest()
    made.build.steps.add(step="compile", parameters=parameters)
    assert wanted(made, SOURCE).sizes == {}


def test_everything_that_shapes_a_plan_is_in_its_key() -> None:
    plain = wanted(manifest(), SOURCE)
    others = [
        wanted(manifest(16), SOURCE),
        wanted(manifest(32, 8), SOURCE),
        dataclasses.replace(plain, sizes={"seq": (1, 2, 3)}),
        dataclasses.replace(plain, workspace=1 << 20),
    ]
    assert len({each.shapes for each in (plain, *others)}) == 5
    assert wanted(manifest(), "sha256:" + "cd" * 32).shapes == plain.shapes
    assert wanted(manifest(), SOURCE) == plain


def test_whose_plan_will_do() -> None:
    need = wanted(manifest(32), SOURCE)
    reaches: Profile = {"x": ((1, 4), (8, 4), (32, 4))}
    short: Profile = {"x": ((1, 4), (8, 4), (16, 4))}
    assert need.met_by(made(reaches)) and need.met_by(made(short, reaches))
    assert not need.met_by(made(short))
    assert need.met_by(made()), "all its shapes are fixed"
    assert not need.met_by(made(reaches, source="sha256:" + "00" * 32))
    assert Wanted(SOURCE).met_by(made(short))


@pytest.mark.parametrize(
    ("change", "meets"),
    [
        ({}, True),
        ({"architecture": "sm80,sm89"}, True),
        ({"architecture": "sm80+"}, True),
        ({"architecture": "sm120+"}, False),
        ({"builder": "tensorrt"}, False),
        ({"version": "1.7.1.115"}, False),
    ],
)
def test_a_target_is_met_by_all_of_builder_version_and_architecture(change: dict[str, str], meets: bool) -> None:
    assert RTX.met_by(made(**change)) is meets


@pytest.mark.parametrize(
    ("builder", "architecture", "told"),
    [("tensorrt-rtx", "sm89", "SM89"), ("tensorrt-rtx", "sm90", "CURRENT"), ("tensorrt", "sm90", "")],
)
def test_what_the_builder_is_told_to_compile_for(builder: str, architecture: str, told: str) -> None:
    assert capability(Target(builder, "1", architecture)) == told
