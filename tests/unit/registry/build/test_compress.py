"""quantise, prune, share and distil with real models: what gets smaller, what stays the same, what is refused."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from penstock.errors import InvalidArgument, InvalidManifest, TooLarge
from services.registry.build.steps import chains, onnx_file, prune, share, tensors
from services.registry.build.steps.session import Session
from services.registry.build.steps.smooth import smoothed

from .conftest import Run


def files(folder: Path, *roles: str) -> dict[str, Path]:
    known = {"model": "model.onnx", "samples": "samples.npz", "evaluation": "evaluation.npz", "training": "samples.npz"}
    return {role: folder / known[role] for role in roles}


def test_digits_become_int8_and_stay_accurate(digits: Path, step: Run) -> None:
    result = step("quantise", files(digits, "model", "samples", "evaluation"), rows=64)
    report = result.report
    assert report["after"]["bytes"] < 0.45 * report["before"]["bytes"]
    assert report["for_tensorrt"]
    assert report["accuracy"]["before"] > 0.85
    assert report["accuracy"]["after"] > report["accuracy"]["before"] - 0.02
    made = onnx.load(result.files["model"])
    weights = [
        tensor for tensor in made.graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert len(weights) == 2
    scales = [tensor.dims[0] for tensor in made.graph.initializer if tensor.name.endswith("weight0_scale")]
    assert scales == [160], "one scale per column"
    assert not any(tensor.data_type == TensorProto.INT32 for tensor in made.graph.initializer), "a bias was quantised"


def test_an_encoder_becomes_int8_with_its_outliers_in_the_weights(tiny: Path, step: Run) -> None:
    report = step("quantise", files(tiny, "model", "samples")).report
    found = report["difference"]["token_embeddings"]
    assert found["cosine"] > 0.95
    assert found["finite"]


def test_without_samples_ranges_are_measured_while_serving(digits: Path, step: Run) -> None:
    report = step("quantise", files(digits, "model", "evaluation"), method="dynamic").report
    assert not report["for_tensorrt"]
    assert report["accuracy"]["after"] > report["accuracy"]["before"] - 0.02
    with pytest.raises(InvalidArgument, match="method dynamic"):
        step("quantise", files(digits, "model"))


def test_a_set_without_an_input_of_the_model_is_refused(digits: Path, tiny: Path, step: Run) -> None:
    with pytest.raises(InvalidArgument, match="lacks the model's input pixels"):
        step("quantise", {"model": digits / "model.onnx", "samples": tiny / "samples.npz"})


def test_smoothing_changes_no_answer(tiny: Path) -> None:
    model = onnx_file.read(tiny / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("LayerNorm.weight"))
    loud = numpy_helper.to_array(weight).copy()
    loud[3] *= 40  # a channel as loud as those of real encoders
    weight.CopyFrom(numpy_helper.from_array(loud, weight.name))
    arrays = tensors.samples(tiny / "samples.npz", "samples")
    made, count = smoothed(model, arrays, 0.7, 24, 8, 1)
    assert count >= 1
    a, b = (Session(each.SerializeToString(), 1).run(arrays)["token_embeddings"] for each in (model, made))
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_hidden_units_go_and_shapes_follow(digits: Path, step: Run) -> None:
    result = step("prune", files(digits, "model", "samples", "evaluation"), share=0.25)
    assert result.report["removed"]["chains"] == {"product0": {"before": 160, "after": 120}}
    assert result.report["after"]["weights"] < 0.77 * result.report["before"]["weights"]
    assert result.report["accuracy"]["after"] > 0.5 * result.report["accuracy"]["before"]
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load(result.files["model"]).graph.initializer}
    assert shapes == {"weight0": [64, 120], "bias0": [120], "weight1": [120, 10], "bias1": [10]}


def test_feed_forward_layers_of_an_encoder_are_chains(tiny: Path, step: Run) -> None:
    result = step("prune", files(tiny, "model"), share=0.5)
    assert result.report["removed"]["chains"] == {
        f"encoder.layer.{index}.intermediate.dense.matmul": {"before": 64, "after": 32} for index in range(2)
    }


def chain_model(second: str = "MatMul", turned: bool = False, reader: bool = False) -> onnx.ModelProto:
    chance = np.random.default_rng(0)
    w2 = chance.normal(size=(3, 16) if turned else (16, 3)).astype("f4")
    constants = {"w1": chance.normal(size=(16, 4)).astype("f4"), "b1": chance.normal(size=16).astype("f4"), "w2": w2}
    more: dict[str, Any] = {"transB": 1} if turned else {}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node(second, ["t", "w2"], ["y"], name="second", **more),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])]
    if reader:
        nodes.append(helper.make_node("Softmax", ["t"], ["s"], axis=-1))
        outputs.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch", 16]))
    return helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])], outputs,
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip


@pytest.mark.parametrize("second, turned", [("MatMul", False), ("Gemm", False), ("Gemm", True)])
def test_units_that_do_nothing_can_go_without_a_trace(second: str, turned: bool) -> None:
    model = chain_model(second, turned)
    constants = onnx_file.constants(model)
    w2 = numpy_helper.to_array(constants["w2"]).copy()
    w2[(slice(None), slice(0, 8)) if turned else slice(0, 8)] = 0  # nobody reads the first eight units
    constants["w2"].CopyFrom(numpy_helper.from_array(w2, "w2"))
    x = {"x": np.random.default_rng(1).normal(size=(5, 4)).astype("f4")}
    before = Session(model.SerializeToString(), 1).run(x)["y"]
    (chain,) = chains.find(model)
    chains.cut(model, chain, np.arange(8, 16))
    assert list(onnx_file.constants(model)["w1"].dims) == [8, 4]
    np.testing.assert_allclose(Session(model.SerializeToString(), 1).run(x)["y"], before, rtol=1e-5, atol=1e-6)


def test_what_somebody_else_reads_is_no_chain() -> None:
    assert chains.find(chain_model(reader=True)) == []


def test_the_smallest_weights_become_zero(digits: Path, step: Run) -> None:
    removed = step("prune", files(digits, "model"), method="magnitude", share=0.3).report["removed"]
    assert removed["share"] == pytest.approx(0.3, abs=0.01)


def test_two_of_every_four_become_zero_along_the_contracted_axis() -> None:
    array = np.array([[1, 9], [-2, 8], [3, -7], [4, 6]], np.float32)
    assert prune._two_of_four(array, 0).tolist() == [[0, 9], [0, 8], [3, 0], [4, 0]]
    assert prune._two_of_four(array[:3], 0).tolist() == array[:3].tolist()


def test_equal_weights_are_kept_once(tmp_path: Path, step: Run) -> None:
    model = chain_model()
    copy = numpy_helper.from_array(numpy_helper.to_array(onnx_file.constants(model)["w2"]), "w3")
    model.graph.initializer.append(copy)
    model.graph.node.append(helper.make_node("MatMul", ["t", "w3"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 3]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    result = step("share", {"model": tmp_path / "m.onnx"})
    assert result.report["merged"] == {"tensors": 1, "bytes": 16 * 3 * 4}
    assert all(found["largest_absolute"] == 0 for found in result.report["difference"].values())


def test_a_codebook_takes_a_quarter_of_the_bytes(digits: Path, step: Run) -> None:
    report = step("share", files(digits, "model", "evaluation"), codebook=32, least=512).report
    assert report["coded"] == 2
    assert report["after"]["bytes"] < 0.35 * report["before"]["bytes"]
    assert report["accuracy"]["after"] > report["accuracy"]["before"] - 0.05


def test_a_codebook_of_all_values_loses_nothing() -> None:
    array = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    values, index = share.codebook(array, 8)
    np.testing.assert_allclose(values[index], array, atol=1e-6)


def test_a_pickle_is_no_set_of_samples(digits: Path, tmp_path: Path, step: Run) -> None:
    held = io.BytesIO()
    np.savez(held, pixels=np.array([{}, []], dtype=object))
    for data, words in ((held.getvalue(), "without objects"), (b"\x80\x04]", "a pickle is never read"), (b"", "npz")):
        (tmp_path / "s.npz").write_bytes(data)
        with pytest.raises(InvalidArgument, match=words):
            step("quantise", {"model": digits / "model.onnx", "samples": tmp_path / "s.npz"})


def test_samples_need_as_many_rows_each(tmp_path: Path) -> None:
    tensors.write({"a": np.zeros((2, 3)), "b": np.zeros((3, 3))}, tmp_path / "s")
    with pytest.raises(InvalidArgument, match="a has 2, b has 3"):
        tensors.samples(tmp_path / "s", "samples")


def test_a_small_archive_of_large_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "s.npz", a=np.zeros((1000, 1000)))
    monkeypatch.setattr(tensors, "MAX_BYTES", 1 << 20)
    with pytest.raises(TooLarge):
        tensors.read(tmp_path / "s.npz", "samples")


def test_bfloat16_weights_are_widened(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (tmp_path / "w").write_bytes(len(header).to_bytes(8, "little") + header + b"\x80\x3f\x40\xc0")
    assert tensors.read(tmp_path / "w", "weights")["w"].tolist() == [1.0, -3.0]


def test_a_model_that_reaches_outside_is_refused_by_every_step(digits: Path, tmp_path: Path, step: Run) -> None:
    model = onnx.load(digits / "model.onnx")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    for name in ("halve", "quantise", "prune", "share"):
        with pytest.raises(InvalidManifest, match="tensors in other files"):
            step(name, {"model": tmp_path / "m.onnx"})


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (penstock[build-torch])"
)
def test_a_student_answers_as_its_teacher_does(digits: Path, step: Run) -> None:
    recipe = {"loss": "kl", "hidden": [24], "epochs": 40, "seed": 3}
    result = step("distil", files(digits, "model", "training", "evaluation"), **recipe)
    assert result.report["after"]["weights"] < 0.3 * result.report["before"]["weights"]
    assert result.report["accuracy"]["after"] > result.report["accuracy"]["before"] - 0.25
    again = step("distil", files(digits, "model", "training", "evaluation"), **recipe)
    assert result.files["model"].read_bytes() == again.files["model"].read_bytes()


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (penstock[build-torch])"
)
def test_a_teacher_of_tokens_has_no_such_student(tiny: Path, step: Run) -> None:
    with pytest.raises(InvalidArgument, match="this teacher has 3"):
        step("distil", files(tiny, "model", "training"))
