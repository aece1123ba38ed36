"""What a result is published as, and what of a report becomes an engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from penstock.errors import InvalidManifest
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


def converted(**report: object) -> list[pb.StepStatus]:
    return [pb.StepStatus(id="c", step="convert-huggingface", report=json.dumps(report))]


def folder(**fields: object) -> manifest_pb2.Manifest:
    made = manifest_pb2.Manifest(name="bert", format="huggingface", **fields)  # type: ignore[arg-type]
    for role in ("config", "weights", "weights-2", "weights-notes", "tokenizer"):
        made.files[role] = role
    return made


IDS = {"name": "ids", "datatype": "INT64", "shape": [-1, -1]}
ROWS = {"name": "rows", "datatype": "FP32", "shape": [-1, -1, 8]}


def test_what_a_conversion_reports_is_declared_where_the_source_declares_nothing() -> None:
    reports = converted(interface={"inputs": [IDS], "outputs": [ROWS]})
    made = derive.manifest(folder(), 1, "b", reports, estimated=False)
    assert set(made.files) == {"model", "weights-notes", "tokenizer"}
    assert [(one.name, one.datatype, list(one.shape)) for one in (*made.inputs, *made.outputs)] == [
        ("ids", "INT64", [-1, -1]), ("rows", "FP32", [-1, -1, 8]),
    ]  # fmt: skip
    own = manifest_pb2.TensorSpec(name="text", datatype="BYTES", shape=[1])
    batched = folder(inputs=[own], batching=manifest_pb2.Batching(max_batch_size=4))
    made = derive.manifest(batched, 1, "b", reports, estimated=False)
    assert list(made.inputs) == [own] and list(made.outputs[0].shape) == [-1, 8]
    source = {"config": "c", "weights": "w", "weights-2": "x", "tokenizer": "t"}
    assert derive.digests("huggingface", source, {"model": "m"}) == {"tokenizer": "t", "model": "m"}


def test_a_conversion_that_cannot_be_declared_is_refused() -> None:
    with pytest.raises(InvalidManifest, match="inputs: are not declared, and no step reported them"):
        derive.manifest(folder(), 1, "b", converted(), estimated=False)
    wrong: tuple[Any, ...] = ([IDS | {"name": "a\nb"}], [IDS] * 65, [IDS | {"shape": [0]}], [{}], [], "ids")
    for strange in wrong:
        with pytest.raises(InvalidManifest, match="inputs: those of the converted model"):
            reports = converted(interface={"inputs": strange, "outputs": [ROWS]})
            derive.manifest(folder(), 1, "b", reports, estimated=False)
    fixed = converted(interface={"inputs": [IDS | {"shape": [1, 4]}], "outputs": [ROWS]})
    batched = folder(batching=manifest_pb2.Batching(max_batch_size=4))
    with pytest.raises(InvalidManifest, match="'ids' has a batch of one size only"):
        derive.manifest(batched, 1, "b", fixed, estimated=False)


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
