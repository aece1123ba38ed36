"""Real models for the steps: a classifier of digits, and a tiny encoder of random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.registry.build.step import StepContext, StepResult
from services.registry.build.steps import catalogue, encoder

SEQ, WORDS, HIDDEN, HIDDEN_UNITS = 12, 60, 32, 160

Run = Callable[..., StepResult]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: model.onnx, samples.npz (pixels), evaluation.npz (pixels, labels)."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    # A hidden layer by chance and an output layer by least squares: as good as a trained one for what is asked here.
    first = np.random.default_rng(0).normal(0, 0.05, (64, HIDDEN_UNITS))
    bias = np.random.default_rng(1).normal(0, 1, HIDDEN_UNITS)
    seen = np.maximum(pixels[:1400] @ first + bias, 0)
    wanted = 6 * np.eye(10)[labels[:1400]]
    second = np.linalg.solve(seen.T @ seen + 3 * np.eye(HIDDEN_UNITS), seen.T @ wanted)
    layers = [(first, bias), (second, np.zeros(10))]
    nodes, constants, name = [], [], "pixels"
    for index, (weight, shift) in enumerate(layers):
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"weight{index}"))
        constants.append(numpy_helper.from_array(shift.astype(np.float32), f"bias{index}"))
        nodes.append(helper.make_node("MatMul", [name, f"weight{index}"], [f"product{index}"], name=f"product{index}"))
        nodes.append(helper.make_node("Add", [f"product{index}", f"bias{index}"], [f"sum{index}"], name=f"sum{index}"))
        name = f"sum{index}"
        if index < len(layers) - 1:
            nodes.append(helper.make_node("Relu", [name], [f"relu{index}"], name=f"relu{index}"))
            name = f"relu{index}"
    nodes.append(helper.make_node("Softmax", [name], ["probabilities"], name="softmax", axis=-1))
    values = [
        helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", size])
        for each, size in (("pixels", 64), ("probabilities", 10))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "digits", values[:1], values[1:], constants),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "samples.npz", pixels=pixels[:200])
    np.savez(folder / "evaluation.npz", pixels=pixels[1400:], labels=labels[1400:])
    return folder


def encoder_weights(family: str = "bert", layers: int = 2) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """config.json and weights of a tiny encoder."""
    config = {
        "model_type": family, "num_hidden_layers": layers, "hidden_size": HIDDEN, "num_attention_heads": 4,
        "max_position_embeddings": 40, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "pad_token_id": 1,
        "n_layers": layers, "dim": HIDDEN, "n_heads": 4, "activation": "gelu",
    }  # fmt: skip
    names, chance = encoder.NAMES[family], np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        weights[f"{name}.weight"] = chance.normal(0, 0.3, (rows, columns)).astype("f4")
        weights[f"{name}.bias"] = chance.normal(0, 0.1, rows).astype("f4")

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = chance.uniform(0.5, 1.5, HIDDEN).astype("f4")
        weights[f"{name}.bias"] = chance.normal(0, 0.1, HIDDEN).astype("f4")

    for key, rows in (("words", WORDS), ("kinds", 2), ("positions", 40)):
        if key in names:
            weights[f"{names[key]}.weight"] = chance.normal(0, 1, (rows, HIDDEN)).astype("f4")
    norm(names["norm"])
    for index in range(layers):
        layer = names["layer"].format(index)
        for key in ("query", "key", "value", "mixed"):
            linear(f"{layer}.{names[key]}", HIDDEN, HIDDEN)
        norm(f"{layer}.{names['mixed_norm']}")
        linear(f"{layer}.{names['wide']}", 2 * HIDDEN, HIDDEN)
        linear(f"{layer}.{names['narrow']}", HIDDEN, 2 * HIDDEN)
        norm(f"{layer}.{names['out_norm']}")
    return config, weights


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: model.onnx of an encoder, samples.npz of token ids with padding."""
    folder = tmp_path_factory.mktemp("tiny")
    config, weights = encoder_weights()
    model, _ = encoder.build(encoder.Shape.read(config), weights)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    chance = np.random.default_rng(1)
    mask = (np.arange(SEQ)[None] < chance.integers(3, SEQ + 1, (24, 1))).astype(np.int64)
    ids = chance.integers(2, WORDS, (24, SEQ)) * mask
    np.savez(folder / "samples.npz", input_ids=ids, attention_mask=mask, token_type_ids=np.zeros_like(ids))
    return folder


@pytest.fixture
def step(tmp_path: Path) -> Run:
    """Runs a step by name in a folder of its own: inputs by role, parameters as keywords."""
    count = 0

    def run(
        name: str, files: dict[str, Path], /, *, secrets: dict[str, bytes] | None = None, **parameters: Any
    ) -> StepResult:
        nonlocal count
        count += 1
        folder = tmp_path / f"{name}-{count}"
        folder.mkdir()
        found = catalogue.find(name)
        found.check_inputs(files)
        parts: list[float] = []
        result = found.run(
            StepContext(
                found.read(parameters),
                files,
                folder,
                lambda text: None,
                parts.append,
                threads=1,
                secrets=secrets or {},
            )
        )
        assert parts == sorted(parts)
        assert all(path.is_relative_to(folder) for path in result.files.values())
        assert set(result.files) == {role.name for role in found.outputs}
        return result

    return run
