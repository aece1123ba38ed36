"""Half precision with real models: numbers, and types at every edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.registry.build.steps import halve, onnx_file
from services.registry.build.steps.bfloat16 import uses_bfloat16, widened
from services.registry.build.steps.session import Session

from .conftest import Run


def graph(nodes: list[Any], constants: dict[str, np.ndarray], opset: int = 20, outputs: int = 1) -> onnx.ModelProto:
    """x [batch, 4] → y, y2, ..."""
    names = ["y", "y2"][:outputs]
    made = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in names],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("their.own", 1)], ir_version=10,
    )  # fmt: skip
    onnx.checker.check_model(made)
    return made


def converted(
    model: onnx.ModelProto, precision: str = "fp16", stay: set[str] | None = None
) -> tuple[Any, halve.Conversion]:
    conversion = halve.Conversion(onnx_file.inferred(model), precision, stay or set())
    made = conversion.convert()
    onnx.checker.check_model(made, full_check=True)  # strict types: an operator with unequal inputs is refused
    return made, conversion


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("which", ["digits", "tiny"])
def test_a_model_keeps_its_answers_and_its_interface(
    which: str, precision: str, step: Run, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(which)
    result = step(
        "halve",
        {name: folder / f"{name}.{end}" for name, end in (("model", "onnx"), ("samples", "npz"))},
        precision=precision,
    )
    report = result.report
    assert report["after"]["bytes"] < 0.62 * report["before"]["bytes"] if which == "digits" else True
    assert report["converted"] > 0.8 * report["before"]["nodes"]
    for found in report["difference"].values():
        assert found["finite"]
        assert found["cosine"] > (0.999 if precision == "fp16" else 0.99)
    source, made = (onnx.load(path) for path in (folder / "model.onnx", result.files["model"]))
    assert [str(each) for each in source.graph.input] == [str(each) for each in made.graph.input]
    assert [each.type.tensor_type.elem_type for each in made.graph.output] == [TensorProto.FLOAT]
    wide = [tensor.name for tensor in made.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert not wide, "a weight stayed float32"
    assert uses_bfloat16(result.files["model"].read_bytes()) == (precision == "bf16")


def test_what_is_sensitive_stays_float_with_casts_around_it() -> None:
    model = graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Exp", ["h"], ["e"]),
            helper.make_node("Add", ["e", "h"], ["y"]),
        ],
        {"w": np.eye(4, dtype=np.float32)},
    )
    made, conversion = converted(model)
    assert [node.op_type for node in made.graph.node].count("Exp") == 1
    exp = next(node for node in made.graph.node if node.op_type == "Exp")
    assert (exp.input[0], exp.output[0]) == ("h", "e")
    assert conversion.casts == 4  # x to half; h to float for Exp; e to half for Add; y to float
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    given = Session(made.SerializeToString(), 1).run({"x": x})["y"]
    np.testing.assert_allclose(given, np.exp(x) + x, rtol=5e-3, atol=5e-3)


def test_a_constant_that_half_cannot_hold_keeps_its_node_in_float() -> None:
    model = graph(
        [
            helper.make_node("Mul", ["x", "big"], ["h"], name="grow"),
            helper.make_node("Mul", ["h", "small"], ["y"], name="shrink"),
        ],
        {"big": np.array(1e6, np.float32), "small": np.array(1e-9, np.float32)},
    )
    _, conversion = converted(model)
    assert conversion.converted == 0
    assert conversion.casts == 0
    _, conversion = converted(model, "bf16")  # whose range is that of float32
    assert conversion.converted == 2


def test_a_named_node_stays_float() -> None:
    model = graph(
        [helper.make_node("Relu", ["x"], ["h"], name="a"), helper.make_node("Abs", ["h"], ["y"], name="b")], {}
    )
    assert converted(model, stay={"a"})[1].converted == 1
    assert converted(model, stay={"Abs"})[1].converted == 1


def test_values_near_the_end_of_the_range_are_found() -> None:
    model = graph(
        [
            helper.make_node("Mul", ["x", "ten"], ["h"], name="a"),
            helper.make_node("Mul", ["h", "ten"], ["y"], name="b"),
        ],
        {"ten": np.array(10, np.float32)},
    )
    found = halve.beyond(onnx_file.inferred(model), {"x": np.full((1, 4), 500, np.float32)}, 32_000, 1)
    assert found == {"b"}


def test_branches_read_float_and_give_float() -> None:
    branch = [
        helper.make_graph(
            [helper.make_node(op, ["h"], [f"{op}_out"])], op, [],
            [helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["batch", 4])],
        )
        for op in ("Neg", "Abs")
    ]  # fmt: skip
    model = graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
            helper.make_node("Greater", ["m", "zero"], ["c"]),
            helper.make_node("If", ["c"], ["i"], then_branch=branch[0], else_branch=branch[1]),
            helper.make_node("Add", ["i", "h"], ["y"]),
        ],
        {"w": np.eye(4, dtype=np.float32), "zero": np.array(0, np.float32)},
    )
    made, _ = converted(model)
    x = np.array([[1, -2, 3, -4]], np.float32)
    np.testing.assert_allclose(Session(made.SerializeToString(), 1).run({"x": x})["y"], [[0, 0, 0, 0]])
    np.testing.assert_allclose(Session(made.SerializeToString(), 1).run({"x": -np.abs(x)})["y"], -np.abs(x) + np.abs(x))


def test_what_an_unknown_operator_gives_is_left_alone() -> None:
    model = graph(
        [
            helper.make_node("Relu", ["x"], ["h"]),
            helper.make_node("Odd", ["h"], ["o"], domain="their.own"),
            helper.make_node("Add", ["o", "h"], ["y"]),
        ],
        {},
    )
    made, conversion = converted(model)
    assert conversion.converted == 1
    assert [list(node.input) for node in made.graph.node if node.op_type in ("Odd", "Add")] == [["h"], ["o", "h"]]


def test_an_input_that_is_an_output_stays_one() -> None:
    model = graph([helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y2"])], {}, outputs=2)
    made, _ = converted(model)
    x = np.array([[1, -2, 3, -4]], np.float32)
    assert Session(made.SerializeToString(), 1).run({"x": x})["y2"].tolist() == [[1, 0, 3, 0]]


def test_an_old_model_is_lifted_to_operators_with_half_types() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])], {}, opset=11)
    made, conversion = converted(halve.lifted(model, halve.OPSET["bf16"]), "bf16")
    assert conversion.converted == 1
    assert onnx_file.opset(made) == 17


def test_rounding_to_bfloat16_is_to_the_nearest_and_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.14159, 0.0, 1e-40, np.inf, np.nan], np.float32)
    wide = (halve.rounded(values).astype("<u4") << 16).view("<f4")
    assert wide[0] == 1
    assert wide[1] == 1  # halfway between 1 and 1.0078125: to the even one
    assert wide[2] == 1.015625  # halfway, and the even one is above
    assert wide[3] == -3.140625
    assert np.isinf(wide[6])
    assert np.isnan(wide[7])


def test_the_emulation_rounds_as_bfloat16_does() -> None:
    model = graph([helper.make_node("Mul", ["x", "k"], ["y"])], {"k": np.array(1.1, np.float32)})
    made, _ = converted(model, "bf16")
    x = np.array([[1.3, 2.7, -0.1, 100.7]], np.float32)

    def near(values: Any) -> Any:
        return (halve.rounded(np.asarray(values, np.float32)).astype("<u4") << 16).view("<f4")

    given = Session(made.SerializeToString(), 1)
    assert given.emulated
    np.testing.assert_array_equal(given.run({"x": x})["y"], near(near(x) * near([1.1])))
    assert not uses_bfloat16(model.SerializeToString())
    assert widened(model.SerializeToString())
