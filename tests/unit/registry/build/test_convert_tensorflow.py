"""TensorFlow Lite, SavedModel and Keras: what was converted answers as it did, and what reaches out is refused."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.errors import InvalidArgument, InvalidManifest
from services.registry.build.steps.session import Session

from .conftest import Run

MISSING = [name for name in ("tensorflow", "keras", "tf2onnx") if importlib.util.find_spec(name) is None]
TENSORFLOW = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} is not installed (penstock[build-tensorflow])"
)
QUIET = pytest.mark.filterwarnings("ignore")  # of the libraries, about themselves and each other

Array = np.ndarray[Any, Any]


def plain() -> Any:
    """Layers one after another; its input and output have names."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((12, 12, 3), name="image"),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax", name="scores"),
        ]
    )


def forked() -> Any:
    """Two inputs, a loop, an operation of keras.ops, two outputs in a dict."""
    import keras

    layers = keras.layers
    series, more = layers.Input((5, 4), name="series"), layers.Input((6,), name="more")
    hidden = layers.LSTM(6)(series)
    scores = keras.ops.tanh(layers.Dense(2)(layers.Concatenate()([hidden, more]))) * 2.0
    return keras.Model([series, more], {"scores": scores, "hidden": hidden})


def folder_of(folder: Path) -> dict[str, Path]:
    """A SavedModel's files by role."""
    variables = folder / "variables"
    return {
        "graph": folder / "saved_model.pb",
        "index": variables / "variables.index",
        "weights": variables / "variables.data-00000-of-00001",
    }


def answers(path: Path, **feeds: Array) -> dict[str, Array]:
    return Session(path.read_bytes(), 1).run(feeds)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# --- TensorFlow Lite --------------------------------------------------------------------------------------------------


@TENSORFLOW
@QUIET
def test_a_tflite_model_answers_the_same_as_onnx(tmp_path: Path, step: Run) -> None:
    import keras
    import tensorflow

    layers = keras.layers
    model = keras.Sequential([layers.Input((8,)), layers.Dense(16, activation="relu"), layers.Dense(3)])
    (tmp_path / "m.tflite").write_bytes(tensorflow.lite.TFLiteConverter.from_keras_model(model).convert())
    result = step("convert-tflite", {"model": tmp_path / "m.tflite"}, inputs=["x"], outputs=["scores"])
    assert (result.report["inputs"], result.report["outputs"]) == (["x"], ["scores"])
    x = numbers(5, 8)
    np.testing.assert_allclose(answers(result.files["model"], x=x)["scores"], model(x).numpy(), atol=1e-5)
    with pytest.raises(InvalidArgument, match="the model has 1, and 2 names"):
        step("convert-tflite", {"model": tmp_path / "m.tflite"}, inputs=["a", "b"])


@pytest.mark.parametrize(
    "head, words",
    [
        (b"PK\x03\x04", "Keras archive; publish it as format keras"),
        (b"\x89HDF\r\n", "HDF5 file; save it as .keras"),
        (b"\x08\x01\x12", "SavedModel; publish it as format savedmodel"),
        (b"", "no TensorFlow Lite model; make one with tf.lite.TFLiteConverter"),
    ],
)
def test_other_formats_of_tensorflow_are_refused_with_what_to_do(
    head: bytes, words: str, tmp_path: Path, step: Run
) -> None:
    (tmp_path / "m").write_bytes(head)
    with pytest.raises(InvalidManifest, match=words):
        step("convert-tflite", {"model": tmp_path / "m"})


# --- Keras ------------------------------------------------------------------------------------------------------------


@TENSORFLOW
@QUIET
def test_a_keras_archive_answers_the_same_as_onnx(tmp_path: Path, step: Run) -> None:
    model = plain()
    model.save(tmp_path / "m.keras")
    result = step("convert-keras", {"model": tmp_path / "m.keras"})
    image = numbers(3, 12, 12, 3)
    found = answers(result.files["model"], image=image)["scores"]
    np.testing.assert_allclose(found, model(image, training=False).numpy(), atol=1e-5)
    assert result.report["largest_difference"] < 1e-5 and "Conv2D" in result.report["classes"]
    assert result.report["interface"]["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 12, 12, 3]}]


@TENSORFLOW
@QUIET
def test_a_keras_model_of_several_inputs_keeps_its_names(tmp_path: Path, step: Run) -> None:
    model = forked()
    model.save(tmp_path / "m.keras")
    result = step("convert-keras", {"model": tmp_path / "m.keras"}, names={"more": "rest"})
    assert (result.report["inputs"], result.report["outputs"]) == (["series", "rest"], ["hidden", "scores"])
    series, more = numbers(3, 5, 4), numbers(3, 6)
    found, wanted = answers(result.files["model"], series=series, rest=more), model([series, more])
    for name in ("hidden", "scores"):
        np.testing.assert_allclose(found[name], wanted[name].numpy(), atol=1e-5)
    with pytest.raises(InvalidArgument, match="there is no 'mroe'; there are series, more, hidden, scores"):
        step("convert-keras", {"model": tmp_path / "m.keras"}, names={"mroe": "rest"})


@TENSORFLOW
@QUIET
def test_a_lambda_is_refused_by_name(tmp_path: Path, step: Run) -> None:
    import keras

    keras.Sequential([keras.layers.Input((2,)), keras.layers.Lambda(lambda x: x * 2)]).save(tmp_path / "m.keras")
    with pytest.raises(InvalidManifest, match="holds a Lambda layer, which is Python code"):
        step("convert-keras", {"model": tmp_path / "m.keras"})


def _external(group: Any, secret: Path) -> None:
    shape = group["bias"].shape
    del group["bias"]
    group.create_dataset("bias", shape, "f4", external=[(str(secret), 0, 4 * shape[0])])


def _linked(group: Any, secret: Path) -> None:
    import h5py

    del group["bias"]
    group["bias"] = h5py.ExternalLink(str(secret), "/bias")


def _virtual(group: Any, secret: Path) -> None:
    import h5py

    shape = group["bias"].shape
    del group["bias"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource(str(secret), "bias", shape)
    group.create_virtual_dataset("bias", layout)


@TENSORFLOW
@QUIET
@pytest.mark.parametrize("plant", [_external, _linked, _virtual])
def test_weights_that_lie_in_another_file_are_never_read(
    plant: Callable[[Any, Path], None], tmp_path: Path, step: Run
) -> None:
    import h5py
    import keras

    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3)])
    model.save(tmp_path / "m.keras")
    (tmp_path / "secret").write_bytes(b"root:x:0:0:...." * 4)
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "w.h5").write_bytes(members["model.weights.h5"])
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        group = file["layers/dense/vars"]
        group.move("1", "bias")
        plant(group, tmp_path / "secret")
        group.move("bias", "1")
    members["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "forged.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InvalidManifest, match="weights name 1 in another place or file, which is never read"):
        step("convert-keras", {"model": tmp_path / "forged.keras"})


# --- SavedModel -------------------------------------------------------------------------------------------------------


@TENSORFLOW
@QUIET
def test_a_saved_model_answers_the_same_as_onnx(tmp_path: Path, step: Run) -> None:
    kinds: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
        "plain": (plain(), {"image": (12, 12, 3)}),
        "forked": (forked(), {"series": (5, 4), "more": (6,)}),
    }
    for name, (model, shapes) in kinds.items():
        model.export(tmp_path / name, verbose=False)
        result = step("convert-savedmodel", folder_of(tmp_path / name))
        assert result.report["largest_difference"] < 1e-5
        feeds = {key: numbers(3, *shape) for key, shape in shapes.items()}
        found = answers(result.files["model"], **feeds)
        wanted = model(list(feeds.values()) if len(feeds) > 1 else feeds["image"], training=False)
        wanted = wanted if isinstance(wanted, dict) else {"output_0": wanted}
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], value.numpy(), atol=1e-5)


def module(path: Path, body: Callable[[Any, Any], Any], *shape: int | None) -> dict[str, Path]:
    """Writes a module of one variable `w` [4, 3] whose signature computes `body` of it and of `x`."""
    import tensorflow as tf

    class Module(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable(numbers(4, 3), name="w")
            self.table: Any = None

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def call(self, x: Any) -> Any:
            return body(self.w, x)

    made = Module()
    tf.saved_model.save(made, str(path), signatures=made.call)
    return folder_of(path)


@TENSORFLOW
@QUIET
def test_a_branch_reads_variables_and_inputs_under_new_names(tmp_path: Path, step: Run) -> None:
    import tensorflow as tf

    def body(w: Any, x: Any) -> Any:
        return {"scores": tf.cond(tf.reduce_sum(x) > 0, lambda: x @ w, lambda: 2 * x @ w)}

    files = module(tmp_path / "m", body, None, 4)
    result = step("convert-savedmodel", files, names={"x": "features"})
    features = numbers(5, 4)
    for sign in (1, -1):
        x = sign * np.abs(features)
        found = answers(result.files["model"], features=x)["scores"]
        np.testing.assert_allclose(found, x @ numbers(4, 3) * (1 if sign > 0 else 2), atol=1e-5)


@TENSORFLOW
@QUIET
def test_what_reaches_out_is_refused_by_its_operator(tmp_path: Path, step: Run) -> None:
    import tensorflow as tf

    bodies: dict[str, Callable[[Any, Any], Any]] = {
        "ReadFile": lambda w, x: {"y": tf.strings.length(tf.io.read_file("/etc/passwd"))},
        "PyFunc|EagerPyFunc": lambda w, x: {"y": tf.py_function(lambda v: v, [x], tf.float32)},
        "WriteFile": lambda w, x: _written(tf, x),
        "Betainc": lambda w, x: {"y": tf.math.betainc(x, x, x)},
    }
    for number, (operator, body) in enumerate(bodies.items()):
        files = module(tmp_path / str(number), body, None, 4)
        with pytest.raises(InvalidManifest, match=f"the operator '({operator})' "):
            step("convert-savedmodel", files)
    assert not (tmp_path / "written").exists()


def _written(tf: Any, x: Any) -> Any:
    with tf.control_dependencies([tf.io.write_file("written", "no")]):
        return {"y": tf.identity(x)}


@TENSORFLOW
@QUIET
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, step: Run) -> None:
    files = module(tmp_path / "m", lambda w, x: {"y": x @ w}, None, 4)
    with pytest.raises(InvalidManifest, match=r"name variables/variables\.index as `index`"):
        step("convert-savedmodel", {"graph": files["graph"]})
    files["weights"].write_bytes(files["weights"].read_bytes()[:8])
    with pytest.raises(InvalidManifest, match="the checkpoint is damaged, or lacks a file"):
        step("convert-savedmodel", files)
    with pytest.raises(InvalidManifest, match="no signature 'other'; there are serving_default"):
        step("convert-savedmodel", files, signature="other")
