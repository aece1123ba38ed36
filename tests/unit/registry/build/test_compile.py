"""Real plans of TensorRT-RTX, whose builder needs no GPU, signed and verified; what cannot be compiled and why."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from penstock import compiling, plans
from penstock.compiling import builders, repair, source
from penstock.errors import InvalidArgument, InvalidManifest, Unsupported
from services.registry.build.steps import catalogue, compile, onnx_file

from .conftest import Run

KEY = Ed25519PrivateKey.generate()
TRUSTED = [KEY.public_key().public_bytes_raw()]
SECRETS = {compile.KEY: KEY.private_bytes_raw()}
needs_builder = pytest.mark.skipif(
    not any(importlib.util.find_spec(package) for package in builders.PACKAGES),
    reason="no TensorRT builder is installed (penstock[compile])",
)


def compiled(step: Run, model: Path, **parameters: Any) -> tuple[plans.PlanHeader, bytes, dict[str, Any]]:
    result = step("compile", {"model": model}, secrets=SECRETS, **parameters)
    header, plan = plans.unwrap(result.files["plan"].read_bytes(), TRUSTED)
    return header, bytes(plan), result.report


@needs_builder
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("which", ["digits", "tiny"])
def test_every_precision_of_both_models_becomes_a_signed_plan(
    which: str, precision: str, step: Run, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(which)
    model = folder / "model.onnx"
    if precision in ("fp16", "bf16"):
        model = step("halve", {"model": model}, precision=precision).files["model"]
    elif precision == "int8":
        model = step("quantise", {"model": model, "samples": folder / "samples.npz"}).files["model"]
    header, plan, report = compiled(step, model, sizes={"seq": [1, 8, 16]}, batch={"max": 8, "seen": {"2": 9}})
    assert header.source == f"sha256:{hashlib.sha256(model.read_bytes()).hexdigest()}"
    assert header.precision == precision
    assert header.key == report["engine"]["key"]
    assert len(plan) > 1000
    shapes = next(iter(header.profiles[0].values()))
    assert [shape[0] for shape in shapes] == [1, 2, 8]


@needs_builder
def test_a_target_is_part_of_the_key_and_the_timing_cache_is_handed_on(digits: Path, step: Run) -> None:
    first = step("compile", {"model": digits / "model.onnx"}, secrets=SECRETS, architecture="sm_89", level=1)
    kept = first.files["timing_cache"]
    again = step(
        "compile",
        {"model": digits / "model.onnx", "timing_cache": kept},
        secrets=SECRETS,
        architecture="sm_89",
        level=1,
    )
    other = step("compile", {"model": digits / "model.onnx"}, secrets=SECRETS, architecture="sm_120", level=1)
    key, same, different = (each.report["engine"]["key"] for each in (first, again, other))
    assert key == same != different
    assert first.report["engine"]["architecture"] == "sm89"


@needs_builder
def test_an_operator_that_cannot_be_compiled_is_named(tmp_path: Path, step: Run) -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], name="lower", case_change_action="LOWER")
    values = [helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArgument, match="cannot be compiled") as caught:
        compiled(step, tmp_path / "m.onnx")
    assert "/" not in caught.value.message.replace("and/or", "")


def test_precision_is_in_the_graph(digits: Path, step: Run) -> None:
    if not any(importlib.util.find_spec(package) for package in builders.PACKAGES):
        pytest.skip("no TensorRT builder is installed (penstock[compile])")
    with pytest.raises(InvalidArgument, match="halve or quantise it first"):
        compiled(step, digits / "model.onnx", precision="int8")
    with pytest.raises(InvalidArgument, match="for sm_90 leave it empty"):
        compiled(step, digits / "model.onnx", architecture="sm_90")
    with pytest.raises(Unsupported, match="no key to sign"):
        step("compile", {"model": digits / "model.onnx"})


def test_operators_of_the_dynamic_quantiser_say_what_to_do(digits: Path, step: Run) -> None:
    made = step("quantise", {"model": digits / "model.onnx"}, method="dynamic").files["model"]
    with pytest.raises(InvalidArgument, match="DynamicQuantizeLinear cannot be compiled; quantise with method static"):
        source.precision_of(onnx_file.read(made))
    assert source.precision_of(onnx_file.read(made), compilable=False) == "int8"


def test_a_slice_without_axes_is_written_out_and_means_the_same() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Slice", ["table", "zero", "n"], ["y"], name="rows"),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([0]), "zero")],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    made, changed = repair.repaired(model)
    assert changed == ["Slice rows: its axes are written out"]
    assert len(made.graph.node[1].input) == 4
    for each in (model, made):
        from services.registry.build.steps.session import Session

        given = Session(each.SerializeToString(), 1).run({"x": np.zeros(2, np.float32)})["y"]
        assert given.tolist() == table[:2].tolist()
    assert repair.repaired(made)[1] == []


def test_the_key_may_be_bytes_or_pem(tmp_path: Path) -> None:
    plans.new_key(tmp_path / "builder.key")
    pem = compile.signing_key({compile.KEY: (tmp_path / "builder.key").read_bytes()})
    assert pem.public_key().public_bytes_raw() in plans.public_keys(tmp_path / "builder.key.pub")
    assert compile.signing_key(SECRETS).public_key().public_bytes_raw() == TRUSTED[0]
    for wrong in (b"", b"x" * 31, b"-----BEGIN PRIVATE KEY-----"):
        with pytest.raises(Unsupported):
            compile.signing_key({compile.KEY: wrong})


@needs_builder
def test_a_file_that_kills_nothing_but_its_own_process(
    tmp_path: Path, step: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(InvalidManifest):
        compiled(step, tmp_path / "m.onnx")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InvalidArgument, match="ended with status 1"):
        path = tmp_path / "n.onnx"
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        compiled(step, path)


def test_the_builder_never_makes_a_runtime() -> None:
    folders = [Path(module.__file__).parent for module in (catalogue, compiling) if module.__file__]
    assert len(folders) == 2
    assert not [
        path.name
        for folder in folders
        for path in folder.glob("*.py")
        if ".Runtime(" in path.read_text() or "deserialize_cuda" in path.read_text()
    ]
