"""What no engine runs, published as it is: its build makes the version that answers. Real processes throughout."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from deploy.local.suite import Suite
from penstock import Client, errors
from penstock.v1 import builds_pb2
from tests.e2e.conftest import grpc_address
from tests.harness.build_service import NAMESPACES

pytestmark = pytest.mark.skipif(not NAMESPACES, reason="steps need namespaces, which this kernel does not give")

WORDS, HIDDEN, HEADS, WIDE, EPSILON = 40, 16, 2, 32, 1e-5
BUILD = "build: {steps: [%s]}\n"


Array = NDArray[Any]


def weights() -> dict[str, Array]:
    """A BERT of one layer, under the names of a checkpoint with a head."""
    chance = np.random.default_rng(0)
    found: dict[str, Array] = {"cls.seq_relationship.weight": np.ones((2, HIDDEN), "f4")}
    for name, rows in (("word", WORDS), ("position", 24), ("token_type", 2)):
        found[f"bert.embeddings.{name}_embeddings.weight"] = chance.normal(0, 1, (rows, HIDDEN)).astype("f4")
    layer = "bert.encoder.layer.0"
    for name, rows, columns in (
        *((f"{layer}.attention.self.{part}", HIDDEN, HIDDEN) for part in ("query", "key", "value")),
        (f"{layer}.attention.output.dense", HIDDEN, HIDDEN),
        (f"{layer}.intermediate.dense", WIDE, HIDDEN),
        (f"{layer}.output.dense", HIDDEN, WIDE),
    ):
        found[f"{name}.weight"] = chance.normal(0, 0.3, (rows, columns)).astype("f4")
        found[f"{name}.bias"] = chance.normal(0, 0.1, rows).astype("f4")
    for name in ("bert.embeddings", f"{layer}.attention.output", f"{layer}.output"):
        found[f"{name}.LayerNorm.weight"] = chance.uniform(0.5, 1.5, HIDDEN).astype("f4")
        found[f"{name}.LayerNorm.bias"] = chance.normal(0, 0.1, HIDDEN).astype("f4")
    return found


def encoded(found: dict[str, Array], ids: Array) -> Array:
    """The last hidden state of one text, by the paper."""

    def linear(name: str, rows: Array) -> Array:
        product: Array = rows @ found[f"bert.{name}.weight"].T + found[f"bert.{name}.bias"]
        return product

    def norm(name: str, rows: Array) -> Array:
        centred = rows - rows.mean(-1, keepdims=True)
        scaled: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        return scaled * found[f"bert.{name}.LayerNorm.weight"] + found[f"bert.{name}.LayerNorm.bias"]

    layer, table = "encoder.layer.0", "bert.embeddings.{}_embeddings.weight"
    rows = found[table.format("word")][ids] + found[table.format("position")][: len(ids)]
    rows = norm("embeddings", rows + found[table.format("token_type")][0])
    query, key, value = (
        linear(f"{layer}.attention.self.{part}", rows).reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    scores = np.exp(query @ key.transpose(0, 2, 1) / math.sqrt(HIDDEN / HEADS))
    mixed = (scores / scores.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
    rows = norm(f"{layer}.attention.output", rows + linear(f"{layer}.attention.output.dense", mixed))
    wide = linear(f"{layer}.intermediate.dense", rows)
    wide = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
    return norm(f"{layer}.output", rows + linear(f"{layer}.output.dense", wide))


def bert(folder: Path, shards: int) -> dict[str, Array]:
    """Writes a folder as the hub has it, and its manifest, which lists no files; with shards, it is halved too."""
    config = {
        "model_type": "bert", "num_hidden_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
        "max_position_embeddings": 24, "layer_norm_eps": EPSILON, "hidden_act": "gelu", "pad_token_id": 0,
    }  # fmt: skip
    found = weights()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04never read")
    if shards == 1:
        save_file(found, folder / "model.safetensors")
    else:
        names = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(found)}
        for file in set(names.values()):
            save_file({name: found[name] for name in found if names[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    text = f"schema: penstock/v1\nname: {folder.name}\nformat: huggingface\nbatching: {{max_batch_size: 8}}\n"
    steps = "{step: convert-huggingface}" + (", {step: halve}, {step: gate}" if shards > 1 else "")
    (folder / "model.yaml").write_text(text + BUILD % steps)
    return found


def converted(suite: Suite, client: Client, folder: Path, name: str) -> Any:
    """Publishes by the command, waits for the build that the manifest asks for, deploys what it made."""
    command = [sys.executable, "-m", "penstock.cli", "publish", str(folder), "--address", grpc_address(suite)]
    said = subprocess.run(command, check=True, timeout=120, stdout=subprocess.PIPE, text=True).stdout
    assert f"next: deploy what its build makes: penstock builds {name}" in said
    with pytest.raises(errors.Unsupported, match=rf"no engine runs.*penstock build {name}@1 --step"):
        client.deploy(name, 1)
    (asked,) = client.builds(name)
    build = client.ended_build(asked, wait=250)
    assert build.state == builds_pb2.BUILD_STATE_SUCCEEDED, build.reason
    made = client.version(name, build.result_version)
    assert made.manifest.format == "onnx" and set(made.manifest.files) == {"model"}
    assert list(made.manifest.lineage.parents) == [f"{name}@1"]
    client.deploy(made.name, made.version, wait=120)
    return made.manifest


@pytest.mark.parametrize("shards", [1, 2])
def test_a_hugging_face_folder_is_published_built_and_answers(
    suite: Suite, client: Client, tmp_path: Path, shards: int
) -> None:
    name = f"tiny-bert-{shards}"
    found = bert(tmp_path / name, shards)
    manifest = converted(suite, client, tmp_path / name, name)
    told = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in (*manifest.inputs, *manifest.outputs)]
    assert told == [
        ("input_ids", "INT64", [-1]), ("attention_mask", "INT64", [-1]), ("token_type_ids", "INT64", [-1]),
        ("token_embeddings", "FP32", [-1, HIDDEN]),
    ]  # fmt: skip
    ids = np.array([[2, 7, 1, 39, 5], [11, 3, 0, 0, 0]])
    mask = np.array([[1] * 5, [1, 1, 0, 0, 0]])
    sent = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    near = 1e-4 if shards == 1 else 3e-2
    answer = client.infer(manifest.name, sent)["token_embeddings"]
    assert answer[0] == pytest.approx(encoded(found, ids[0]), abs=near)
    assert answer[1, :2] == pytest.approx(encoded(found, ids[1, :2]), abs=near)
    client.undeploy(manifest.name, wait=120)


@pytest.mark.skipif(importlib.util.find_spec("skops") is None, reason="skops is not installed (penstock[build-trees])")
def test_a_scikit_learn_model_is_published_built_and_answers(suite: Suite, client: Client, tmp_path: Path) -> None:
    import skops.io
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    rows, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(rows, labels)
    skops.io.dump(model, tmp_path / "model.skops")
    (tmp_path / "model.yaml").write_text(
        "schema: penstock/v1\nname: iris\nformat: sklearn\nfiles: {model: model.skops}\n"
        + BUILD % "{step: convert-trees, parameters: {library: sklearn}}"
    )
    manifest = converted(suite, client, tmp_path, "iris")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in manifest.inputs] == [
        ("features", "FP32", [-1, 4])
    ]
    some = rows[::10].astype(np.float32)
    answer = client.infer("iris", {"features": some})
    assert answer[manifest.outputs[0].name].tolist() == model.predict(some).tolist()
    assert answer[manifest.outputs[1].name] == pytest.approx(model.predict_proba(some), abs=1e-5)
    client.undeploy("iris", wait=120)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("xgboost", "lightgbm", "onnxmltools")),
    reason="xgboost, lightgbm or onnxmltools is not installed (penstock[build-trees])",
)
@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_boosted_trees_are_published_built_gated_and_answer(
    suite: Suite, client: Client, tmp_path: Path, library: str
) -> None:
    chance = np.random.default_rng(0)
    rows = chance.normal(0, 1, (300, 5)).astype(np.float32)
    model, wanted = boosted(library, rows, (rows[:, 0] > 0).astype(int) + (rows[:, 1] > 0.5))
    (tmp_path / "model.txt").write_text(model)
    (tmp_path / "model.yaml").write_text(
        f"schema: penstock/v1\nname: {library}\nformat: {library}\nfiles: {{model: model.txt}}\n"
        + "batching: {max_batch_size: 64}\n"
        + BUILD % f"{{step: convert-trees, parameters: {{library: {library}}}}}, {{step: gate}}"
    )
    manifest = converted(suite, client, tmp_path, library)
    (build,) = client.builds(library)
    assert build.gate == builds_pb2.GATE_VERDICT_PASSED
    label, probabilities = (tensor.name for tensor in manifest.outputs)
    answer = client.infer(library, {"features": rows[:50]})
    assert answer[probabilities] == pytest.approx(wanted[:50], abs=1e-5)
    assert answer[label].tolist() == wanted[:50].argmax(axis=1).tolist()
    client.undeploy(library, wait=120)


def boosted(library: str, rows: Array, classes: Array) -> tuple[str, Array]:
    """A model of three classes as its library saves it, as text, and the library's own probabilities."""
    if library == "xgboost":
        import xgboost

        settings = {"objective": "multi:softprob", "num_class": 3, "max_depth": 3, "nthread": 1}
        data = xgboost.DMatrix(rows, label=classes)
        booster = xgboost.train(settings, data, 5)
        return bytes(booster.save_raw("json")).decode(), booster.predict(data)
    import lightgbm

    settings = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
    trees = lightgbm.train(settings, lightgbm.Dataset(rows, classes), 5)
    return trees.model_to_string(), np.asarray(trees.predict(rows))


@pytest.mark.torch
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "onnxscript")),
    reason="torch or onnxscript is not installed (make torch)",
)
@pytest.mark.filterwarnings("ignore")  # of torch, about TorchScript
def test_a_scripted_module_is_published_built_and_answers(suite: Suite, client: Client, tmp_path: Path) -> None:
    import torch

    traced = torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Softmax(-1)), torch.ones(2, 4))
    traced.save(str(tmp_path / "model.pt"))
    parameters = "{inputs: {input: [-1, 4]}, outputs: [scores]}"
    (tmp_path / "model.yaml").write_text(
        "schema: penstock/v1\nname: scripted\nformat: torchscript\nfiles: {model: model.pt}\n"
        + "batching: {max_batch_size: 8}\n"
        + BUILD % f"{{step: convert-torch, parameters: {parameters}}}, {{step: gate}}"
    )
    converted(suite, client, tmp_path, "scripted")
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    wanted = traced(torch.from_numpy(rows)).detach().numpy()
    assert client.infer("scripted", {"input": rows})["scores"] == pytest.approx(wanted, abs=1e-5)
    client.undeploy("scripted", wait=120)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorflow", "keras", "tf2onnx")),
    reason="tensorflow, keras or tf2onnx is not installed (penstock[build-tensorflow])",
)
@pytest.mark.filterwarnings("ignore")  # of TensorFlow, about itself
@pytest.mark.parametrize("format", ["keras", "savedmodel"])
def test_a_model_of_tensorflow_is_published_built_and_answers(
    suite: Suite, client: Client, tmp_path: Path, format: str
) -> None:
    import keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((6, 4), name="series"), layers.LSTM(5), layers.Dense(3, activation="softmax", name="scores")]
    )
    name = f"lstm-{format}"
    files, names = "", ""
    if format == "keras":
        model.save(tmp_path / "model.keras")
        files = "files: {model: model.keras}\n"
    else:
        model.export(tmp_path, verbose=False)
        names = ", parameters: {names: {output_0: scores}}"
    (tmp_path / "model.yaml").write_text(
        f"schema: penstock/v1\nname: {name}\nformat: {format}\n{files}batching: {{max_batch_size: 8}}\n"
        + BUILD % f"{{step: convert-{format}{names}}}, {{step: gate}}"
    )
    manifest = converted(suite, client, tmp_path, name)
    assert [(tensor.name, list(tensor.shape)) for tensor in (*manifest.inputs, *manifest.outputs)] == [
        ("series", [6, 4]), ("scores", [3]),
    ]  # fmt: skip
    rows = np.random.default_rng(0).normal(size=(5, 6, 4)).astype(np.float32)
    wanted = np.asarray(model(rows, training=False))
    assert client.infer(name, {"series": rows})["scores"] == pytest.approx(wanted, abs=1e-5)
    client.undeploy(name, wait=120)
