"""What a result is published as, and what of a report becomes an engine."""

from __future__ import annotations

import json

from penstock.v1 import builds_pb2 as pb
from penstock.v1 import manifest_pb2
from services.registry.build import derive
from services.registry.build.sandbox import environment
from services.registry.build.store import engine_key


def source() -> manifest_pb2.Manifest:
    made = manifest_pb2.Manifest(name="digits", format="torch-export", files={"model": "m.pt2", "labels": "l.txt"})
    made.resources.memory_bytes = 100
    made.lineage.dataset = "the digits"
    made.build.steps.add(step="quantise")
    return made


def test_the_manifest_of_a_result() -> None:
    steps = [pb.StepStatus(id="q", step="quantise", report='{"after": {"bytes": 5}, "ok": true, "x": NaN}')]
    made = derive.manifest(source(), 3, "b1", steps, estimated=True)
    assert (made.format, dict(made.files)) == ("onnx", {"model": "model.onnx", "labels": "l.txt"})
    assert list(made.lineage.parents) == ["digits@3"] and made.lineage.dataset == "the digits"
    assert dict(made.lineage.metrics) == {"q.after.bytes": 5.0}
    assert made.lineage.notes["build"] == "b1" and made.lineage.notes["build_steps"] == "quantise"
    assert not made.HasField("build") and made.resources.memory_bytes == 0
    assert derive.manifest(source(), 3, "b1", [], estimated=False).resources.memory_bytes == 100


def test_the_files_of_a_result() -> None:
    assert derive.digests("torch-export", {"model": "a", "labels": "b"}, {"model": "c", "plan": "d"}) == {
        "model": "c",
        "labels": "b",
    }


def test_an_engine_is_keyed_by_all_it_depends_on() -> None:
    key = {"source_digest": "s", "builder": "b", "builder_version": "1", "architecture": "a", "precision": "p"}
    step = pb.StepStatus(report=json.dumps({"engine": {**key, "profile": {"x": [1, 8]}}}))
    build = pb.Build(id="b1", name="digits", source_version=3)
    assert derive.engine(step, build) is None, "without a plan there is no engine"
    step.outputs["plan"].digest = "d"
    step.outputs["timing_cache"].digest = "t"
    made = derive.engine(step, build)
    assert made is not None and made.artifact.digest == "d" and set(made.files) == {"timing_cache"}
    assert made.profile == '{"x": [1, 8]}'
    keys = {engine_key(made)}
    for name in (*key, "profile"):
        other = pb.Engine()
        other.CopyFrom(made)
        setattr(other, name, "else")
        keys.add(engine_key(other))
    assert len(keys) == 7


def test_a_step_gets_no_token_and_no_home() -> None:
    parent = {"PATH": "/bin", "PENSTOCK_TOKEN": "t", "AWS_SECRET": "s", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "0"}
    made = environment(parent, 2, "/scratch")
    assert made["HOME"] == made["TMPDIR"] == "/scratch" and made["OMP_NUM_THREADS"] == "2"
    assert made["PATH"] == "/bin" and made["CUDA_VISIBLE_DEVICES"] == "0"
    assert not {"PENSTOCK_TOKEN", "AWS_SECRET"} & set(made)
