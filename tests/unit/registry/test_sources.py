"""The wrong file of a format that only builds read is caught before it is published; a right one is not."""

from __future__ import annotations

import importlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from penstock import sources as steps
from penstock.errors import InvalidArgument
from services.registry import sources

TENSORS = save({"a": np.ones((2, 2), "f4")})
PICKLE = pickle.dumps([1])


def archive(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr(name, "{}")
    return buffer.getvalue()


def check(format: str, role: str, data: bytes) -> None:
    sources.check(format, role, len(data), lambda offset, length: data[offset : offset + length])


@pytest.mark.parametrize(
    ("format", "role", "data"),
    [
        ("huggingface", "config", b'\n{"model_type": "bert"}'),
        ("huggingface", "weights", TENSORS),
        ("huggingface", "weights-2", TENSORS),
        ("huggingface", "tokenizer", b"whatever"),
        ("sklearn", "model", archive("schema.json")),
        ("xgboost", "model", b'{"learner": {}}'),
        ("lightgbm", "model", b"tree\nversion=v4\n"),
        ("tflite", "model", b"\x1c\0\0\0TFL3" + bytes(30)),
        ("keras", "model", archive("config.json")),
        ("torchscript", "model", archive("m/constants.pkl")),
        ("savedmodel", "graph", b"\x08\x01\x12\x02ab"),
        ("savedmodel", "index", bytes(40) + bytes.fromhex("57fb808b247547db")),
        ("savedmodel", "weights", b"numbers"),
    ],
)
def test_what_looks_right_is_taken(format: str, role: str, data: bytes) -> None:
    check(format, role, data)


@pytest.mark.parametrize(
    ("format", "role", "data", "words"),
    [
        ("huggingface", "config", b"", "empty"),
        ("huggingface", "config", b"[1]", "no config.json"),
        ("huggingface", "config", b"{" + b" " * (1 << 20), "at most 1 MiB"),
        ("huggingface", "weights", PICKLE, "a pickle .*publish model.safetensors"),
        ("huggingface", "weights-3", archive("data.pkl"), "a pickle .*publish model.safetensors"),
        ("huggingface", "weights", TENSORS[:20], "cut short"),
        ("huggingface", "weights", b"\xff" * 8 + b"{}", "cut short"),
        ("sklearn", "model", PICKLE, "skops.io.dump writes; pickles and joblib files are never read"),
        ("sklearn", "model", archive("other.json"), "skops.io.dump"),
        ("sklearn", "model", b"PK\x03\x04", "cut short or damaged"),
        ("xgboost", "model", PICKLE, "save_model writes as .json or .ubj"),
        ("lightgbm", "model", PICKLE, "save_model writes as text"),
        ("tflite", "model", archive("saved_model.pb"), "TFLiteConverter"),
        ("keras", "model", b"\x89HDF\r\n\x1a\n" + bytes(30), "the .keras archive that model.save of Keras 3 writes"),
        ("keras", "model", archive("other.json"), "the .keras archive"),
        ("torchscript", "model", archive("m/data.pkl"), "torch.jit.save writes; pickles of torch.save are never read"),
        ("savedmodel", "graph", archive("saved_model.pb"), "no saved_model.pb; save the model with model.export"),
        ("savedmodel", "index", bytes(48), "no variables.index of a SavedModel"),
        ("savedmodel", "weights-2", b"", "empty"),
    ],
)
def test_what_looks_wrong_is_refused_with_its_role(format: str, role: str, data: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as raised:
        check(format, role, data)
    assert raised.value.field == f"files.{role}"


def test_what_the_libraries_write_is_taken(tmp_path: Path) -> None:
    for name in ("skops.io", "sklearn", "xgboost", "lightgbm"):
        pytest.importorskip(name, reason="needs penstock[build-trees]")
    rows, values = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40.0)
    linear = importlib.import_module("sklearn.linear_model").LinearRegression().fit(rows, values)
    importlib.import_module("skops.io").dump(linear, tmp_path / "m.skops")
    xgboost, lightgbm = importlib.import_module("xgboost"), importlib.import_module("lightgbm")
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, values), 1)
    quiet = {"verbose": -1, "num_threads": 1}
    lightgbm.train(quiet, lightgbm.Dataset(rows, values), 1).save_model(tmp_path / "m.txt")
    for file in ("m.json", "m.ubj"):
        booster.save_model(tmp_path / file)
    for format, file in (("sklearn", "skops"), ("xgboost", "json"), ("xgboost", "ubj"), ("lightgbm", "txt")):
        check(format, "model", (tmp_path / f"m.{file}").read_bytes())


def test_the_command_that_makes_it_servable() -> None:
    assert steps.command("a", 2, "huggingface") == "penstock build a@2 --step convert-huggingface"
    assert steps.command("a", 2, "xgboost") == "penstock build a@2 --step 'convert-trees library=xgboost'"
