"""The gate passes what is near enough, fails what is not, and lists every check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from penstock.errors import InvalidArgument

from .conftest import Run


def gate(step: Run, folder: Path, model: Path, *roles: str, **parameters: Any) -> dict[str, Any]:
    known = {"samples": folder / "samples.npz", "evaluation": folder / "evaluation.npz"}
    inputs = {"source": folder / "model.onnx", "model": model, **{role: known[role] for role in roles}}
    return step("gate", inputs, **parameters).report


def failed(report: dict[str, Any]) -> list[str]:
    names = [check["name"] for check in report["checks"] if not check["passed"]]
    assert report["verdict"] == ("failed" if names else "passed")
    return names


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("which", ["digits", "tiny"])
def test_what_was_made_smaller_passes(which: str, precision: str, step: Run, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    inputs = {"model": folder / "model.onnx", "samples": folder / "samples.npz"}
    name, more = ("quantise", {}) if precision == "int8" else ("halve", {"precision": precision})
    made = step(name, inputs, **more).files["model"]
    roles = ("samples", "evaluation") if which == "digits" else ("samples",)
    report = gate(step, folder, made, *roles, drop=0.03, size_ratio=0.8)
    assert failed(report) == []
    assert report["precision"] == precision
    names = [check["name"] for check in report["checks"]]
    assert names[0] == "signature"
    assert {name.rpartition(".")[0] for name in names if name.startswith("numerics")} == {
        "numerics.samples",
        "numerics.random",
    }
    assert report["memory"]["after"] > 0
    assert report["latency"]["ratio"] > 0


def test_a_model_is_near_itself_even_on_random_inputs_alone(tiny: Path, step: Run) -> None:
    assert failed(gate(step, tiny, tiny / "model.onnx", sizes={"seq": 7})) == []


def damaged(digits: Path, target: Path, scale: float) -> Path:
    model = onnx.load(digits / "model.onnx")
    tensor = next(each for each in model.graph.initializer if each.name == "weight1")
    noise = np.random.default_rng(0).normal(0, scale, tuple(tensor.dims)).astype("f4")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + noise, tensor.name))
    onnx.save(model, target)
    return target


def test_another_model_fails_by_numbers_and_accuracy(digits: Path, tmp_path: Path, step: Run) -> None:
    report = gate(step, digits, damaged(digits, tmp_path / "m.onnx", 0.5), "samples", "evaluation")
    assert {"numerics.samples.probabilities", "accuracy.drop"} <= set(failed(report))
    check = next(check for check in report["checks"] if check["name"] == "accuracy.drop")
    assert check["measured"] > check["limit"] == 0.01
    assert "before" in check["text"]


def test_a_lossy_model_is_judged_by_accuracy_and_needs_a_set_for_it(digits: Path, tmp_path: Path, step: Run) -> None:
    near = damaged(digits, tmp_path / "m.onnx", 0.002)
    assert failed(gate(step, digits, near, "evaluation", precision="lossy", drop=0.05)) == []
    assert failed(gate(step, digits, near, precision="lossy")) == ["accuracy"]


def test_a_number_that_is_not_finite_fails_even_a_lossy_model(digits: Path, tmp_path: Path, step: Run) -> None:
    report = gate(
        step, digits, damaged(digits, tmp_path / "m.onnx", float("inf")), "evaluation", precision="lossy", drop=1.0
    )
    assert any(name.startswith("numerics") for name in failed(report))


def test_budgets(digits: Path, step: Run) -> None:
    tight = {"size_bytes": 10, "size_ratio": 0.5, "memory_bytes": 1, "latency_ms": 0.0, "accuracy": 1.0}
    report = gate(step, digits, digits / "model.onnx", "evaluation", **tight)
    names = failed(report)
    assert {"size.bytes", "size.ratio", "latency.ms", "accuracy"} <= set(names)
    wide = {"size_ratio": 1.0, "latency_ratio": 1000.0, "memory_bytes": 1 << 34, "accuracy": 0.5}
    assert failed(gate(step, digits, digits / "model.onnx", "evaluation", **wide)) == []


def test_an_output_that_is_gone_fails_before_anything_is_compared(digits: Path, tmp_path: Path, step: Run) -> None:
    model = onnx.load(digits / "model.onnx")
    model.graph.output[0].name = "sum1"
    onnx.save(model, tmp_path / "m.onnx")
    report = gate(step, digits, tmp_path / "m.onnx", "samples")
    assert failed(report) == ["signature"]
    assert len(report["checks"]) == 1


def test_a_set_without_labels_is_refused(digits: Path, step: Run) -> None:
    inputs = {"source": digits / "model.onnx", "model": digits / "model.onnx", "evaluation": digits / "samples.npz"}
    with pytest.raises(InvalidArgument, match="'labels'"):
        step("gate", inputs)
