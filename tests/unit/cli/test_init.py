"""penstock init: from real ONNX files to manifests that the registry accepts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml
from google.protobuf import json_format
from onnx import TensorProto, helper

from penstock.cli.init import model_name
from penstock.cli.main import main
from penstock.cli.onnx_manifest import DATATYPES
from penstock.errors import InvalidArgument
from penstock.tensors import DATATYPES as PROTOCOL
from penstock.v1 import manifest_pb2 as pb

Dims = Sequence[int | str | None] | None


def graph(path: Path, dtype: int, inputs: dict[str, Dims], outputs: dict[str, Dims], **more: Any) -> Path:
    """A file in which every output is the identity of the first input."""
    first = next(iter(inputs))
    nodes = [helper.make_node("Identity", [first], [name]) for name in outputs]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, dtype, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, dims) for name, dims in outputs.items()],
        **more,
    )
    onnx.save(helper.make_model(made, producer_name="tests"), str(path))
    return path


def read(path: Path) -> pb.Manifest:
    """The manifest, parsed as the registry does: unknown fields are errors."""
    return json_format.ParseDict(yaml.safe_load(path.read_text()), pb.Manifest())


def run(path: Path, *arguments: str) -> pb.Manifest:
    assert main(["init", str(path), *arguments]) == 0
    return read(path.parent / "model.yaml")


@pytest.mark.parametrize("dtype", list(DATATYPES))
def test_every_datatype_is_known_by_its_protocol_name(tmp_path: Path, dtype: Any) -> None:
    manifest = run(graph(tmp_path / "m.onnx", dtype, {"x": ["n", 3]}, {"y": ["n", 3]}))
    assert manifest.inputs[0].datatype == DATATYPES[dtype]
    assert list(manifest.inputs[0].shape) == [3]


def test_all_datatypes_of_the_protocol_are_covered() -> None:
    assert set(DATATYPES.values()) == set(PROTOCOL)


@pytest.mark.parametrize(
    ("inputs", "outputs", "largest", "shapes"),
    [
        ({"x": ["batch", 3, "seq"]}, {"y": ["batch", 3, "seq"]}, 32, [[3, -1], [3, -1]]),
        ({"x": [None, 3]}, {"y": [None, 3]}, 32, [[3], [3]]),
        ({"x": ["n", 3]}, {"y": ["m", 3]}, 32, [[3], [3]]),
        ({"x": ["n"]}, {"y": ["n"]}, 32, [[], []]),
        ({"a": ["n", 2], "b": ["n", 4]}, {"y": ["n", 2]}, 32, [[2], [4], [2]]),
        ({"a": ["n", 2], "b": ["m", 4]}, {"y": ["n", 2]}, 0, [[-1, 2], [-1, 4], [-1, 2]]),
        ({"a": ["n", 2], "b": [4]}, {"y": ["n", 2]}, 0, [[-1, 2], [4], [-1, 2]]),
        ({"x": [1, 3]}, {"y": [1, 3]}, 0, [[1, 3], [1, 3]]),
        ({"x": []}, {"y": []}, 0, [[], []]),
    ],
)
def test_the_batch_dimension(
    tmp_path: Path, inputs: dict[str, Dims], outputs: dict[str, Dims], largest: int, shapes: list[list[int]]
) -> None:
    manifest = run(graph(tmp_path / "m.onnx", TensorProto.FLOAT, inputs, outputs))
    assert manifest.batching.max_batch_size == largest
    assert [list(tensor.shape) for tensor in (*manifest.inputs, *manifest.outputs)] == shapes


def test_an_output_without_a_shape_is_inferred(tmp_path: Path) -> None:
    manifest = run(graph(tmp_path / "m.onnx", TensorProto.FLOAT, {"x": ["n", 3]}, {"y": None}))
    assert list(manifest.outputs[0].shape) == [3]


def test_weights_are_not_inputs(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1], [0.5])
    path = graph(
        tmp_path / "m.onnx", TensorProto.FLOAT, {"x": ["n", 3], "w": [1]}, {"y": ["n", 3]}, initializer=[weights]
    )
    assert [tensor.name for tensor in run(path).inputs] == ["x"]


def test_external_weights_are_named_and_not_read(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [256], bytes(1024), raw=True)
    path = graph(tmp_path / "m.onnx", TensorProto.FLOAT, {"x": ["n", 3]}, {"y": ["n", 3]}, initializer=[weights])
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.weights", size_threshold=0)
    (tmp_path / "m.weights").unlink()
    assert dict(run(path).files) == {"model": "m.onnx", "weights": "m.weights"}


def test_what_is_not_a_tensor_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = graph(tmp_path / "m.onnx", TensorProto.FLOAT, {"x": ["n", 3]}, {"y": ["n", 3]})
    model = onnx.load(path)
    sequence = helper.make_tensor_sequence_value_info("maps", TensorProto.FLOAT, None)
    model.graph.node.append(helper.make_node("SequenceConstruct", ["x"], ["maps"]))
    model.graph.output.append(sequence)
    onnx.save(model, path)
    assert [tensor.name for tensor in run(path).outputs] == ["y"]
    assert "'maps' is a sequence, not a tensor" in capsys.readouterr().err


def test_odd_names_stay_what_they_are(tmp_path: Path) -> None:
    odd = 'a: "b" # {c}\\é'
    manifest = run(
        graph(tmp_path / "Größe v2..onnx", TensorProto.FLOAT, {odd: ["n", 3]}, {"no": ["n", 3]}), "--name", "m"
    )
    assert manifest.inputs[0].name == odd
    assert manifest.outputs[0].name == "no"
    assert manifest.files["model"] == "Größe v2..onnx"


def test_a_manifest_is_not_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = graph(tmp_path / "m.onnx", TensorProto.FLOAT, {"x": ["n", 3]}, {"y": ["n", 3]})
    (tmp_path / "model.yaml").write_text("mine")
    assert main(["init", str(path)]) == 5
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "model.yaml").read_text() == "mine"
    assert run(path, "--force").name == "m"


def test_where_the_manifest_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    path = graph(tmp_path / "deep" / "m.onnx", TensorProto.FLOAT, {"x": ["n", 3]}, {"y": ["n", 3]})
    assert main(["init", str(path), "-o", str(tmp_path / "up.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == ["x"]
    assert read(tmp_path / "up.yaml").files["model"] == "deep/m.onnx"
    (tmp_path / "aside").mkdir()
    assert main(["init", str(path), "-o", str(tmp_path / "aside" / "model.yaml")]) == 1


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x00" * 100])
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    assert main(["init", str(tmp_path / "m.onnx")]) == 1
    assert "not an ONNX model" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "none.onnx")]) == 1
    assert not (tmp_path / "model.yaml").exists()


def test_what_the_protocol_cannot_carry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = graph(tmp_path / "m.onnx", TensorProto.COMPLEX64, {"x": ["n", 3]}, {"y": ["n", 3]})
    assert main(["init", str(path)]) == 1
    assert "COMPLEX64" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stem", "name"), [("Model", "model"), ("my model (1)", "my-model-1"), ("a..b", "a.b"), ("x" * 99, "x" * 64)]
)
def test_names_made_from_files(stem: str, name: str) -> None:
    assert model_name(stem) == name


def test_a_name_that_cannot_be_made() -> None:
    with pytest.raises(InvalidArgument, match="--name"):
        model_name("模型")


def test_the_registry_accepts_what_init_writes(tmp_path: Path) -> None:
    manifest = pytest.importorskip("services.registry.manifest")
    path = graph(tmp_path / "m.onnx", TensorProto.FLOAT, {"x": ["n", 3]}, {"y": ["n"]})
    assert main(["init", str(path)]) == 0
    assert manifest.parse((tmp_path / "model.yaml").read_text()).batching.max_batch_size == 32
