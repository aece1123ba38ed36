"""`convert-keras`: a `.keras` archive (Keras 3) to ONNX, by tf2onnx.

The archive is rewritten before Keras sees it (penstock/untrusted/keras_archive.py): its configuration makes nothing but
known layers. Its weights are HDF5, a format in which a dataset may lie in any other file; they are looked through for
such links here, so that what becomes weights comes out of the archive.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted import keras_archive
from penstock.untrusted.words import public

from ..step import Role, Step, StepContext, StepResult, installed
from . import tensorflow_graph

MAX_OBJECTS: Final = 1_000_000


@dataclass(frozen=True)
class Parameters:
    """names: input or output of the model → its name in ONNX; the same where it is not listed. opset: of the standard
    operators."""

    names: Mapping[str, str] = field(default_factory=dict)
    opset: int = 18

    def __post_init__(self) -> None:
        tensorflow_graph.check_opset(self.opset)


def run(work: StepContext[Parameters]) -> StepResult:
    """Checks, makes the layers, converts, compares, writes `model`."""
    archive = work.folder / "checked.keras"
    try:
        with work.inputs["model"].open("rb") as source, archive.open("wb") as target:
            classes = keras_archive.rewrite(source, target)
    except InvalidArgument as error:
        raise InvalidManifest(f"model: {error.message}", field="model") from None
    work.say(f"objects of the classes {', '.join(classes)}")
    _refuse_links(archive, work.folder / "weights.h5")
    tensorflow_graph.quiet(work.threads)
    model = _loaded(archive)
    archive.unlink()
    work.progress(0.4)
    inputs = _named(_structure(model), [])
    last = getattr(model, "output_names", None) or [model.layers[-1].name]  # a Sequential has none
    outputs = _named(model.output if isinstance(getattr(model, "output", None), dict) else model.outputs, last)
    known = [name for name, _ in (*inputs, *outputs)]
    tensorflow_graph.check_names(work.parameters.names, known, "convert-keras")
    names = tensorflow_graph.renamed(known, work.parameters.names)
    tensorflow_graph.distinct(names, "convert-keras")
    try:
        function = _function(model, [tensor for _, tensor in inputs])
    except Exception as error:  # a layer that cannot be traced for a batch of any size, say
        raise tensorflow_graph.cannot(public(error), repr(error)) from None
    made = tensorflow_graph.converted(function, names[: len(inputs)], names[len(inputs) :], work.parameters.opset)
    size = work.inputs["model"].stat().st_size
    return tensorflow_graph.written(work, made, size, function, {"classes": classes})


def _refuse_links(archive: Path, weights: Path) -> None:
    """Raises InvalidManifest where the weights are not all in their own file."""
    import h5py

    with zipfile.ZipFile(archive) as opened, opened.open(keras_archive.WEIGHTS) as source, weights.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    try:
        with h5py.File(weights, "r") as file:
            pending, seen = [file["/"]], 0
            while pending:
                group = pending.pop()
                for name in group:
                    seen += 1
                    link = group.get(name, getlink=True)
                    inner = group.get(name) if isinstance(link, h5py.HardLink) else None
                    if inner is None or seen > MAX_OBJECTS:
                        raise _outside(name)
                    if isinstance(inner, h5py.Group):
                        pending.append(inner)
                    elif not isinstance(inner, h5py.Dataset) or inner.external or inner.is_virtual:
                        raise _outside(name)
    except InvalidManifest:
        raise
    except Exception as error:  # of the HDF5 library
        raise InvalidManifest("model: the archive's weights are damaged", field="model", detail=repr(error)) from None
    finally:
        weights.unlink()


def _outside(name: str) -> InvalidManifest:
    return InvalidManifest(
        f"model: the archive's weights name {public(name, 60)} in another place or file, which is never read; save the "
        "model again with model.save",
        field="model",
    )


def _loaded(archive: Path) -> Any:
    try:
        import keras

        return keras.saving.load_model(archive, compile=False, safe_mode=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever Keras makes of a configuration that contradicts itself
        raise InvalidManifest(
            f"model: Keras cannot load it: {public(error)}", field="model", detail=repr(error)
        ) from None


def _structure(model: Any) -> Any:
    """What the model is called with: a tensor, or a list or dict of them."""
    if not model.inputs:
        raise InvalidManifest("model: it does not say what it takes; begin it with keras.Input", field="model")
    found = getattr(model, "input", None)  # a Sequential has none
    return found if found is not None else model.inputs[0]


def _named(tensors: Any, names: list[str]) -> list[tuple[str, Any]]:
    """Name and tensor of everything that the model takes or gives: a dict's keys, else these, else their own names."""
    from keras import tree

    found = tree.flatten_with_path(tensors)
    own = names if len(names) == len(found) else [tensor.name for _, tensor in found]
    return [
        (path[-1] if path and isinstance(path[-1], str) else name, tensor)
        for name, (path, tensor) in zip(own, found, strict=True)
    ]


def _function(model: Any, inputs: list[Any]) -> Any:
    import tensorflow
    from keras import tree

    specs = [tensorflow.TensorSpec(tensor.shape, tensor.dtype) for tensor in inputs]
    structure = _structure(model)

    def call(*tensors: Any) -> Any:
        return tree.flatten(model(tree.pack_sequence_as(structure, list(tensors)), training=False))

    return tensorflow_graph.frozen(call, specs)


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build-tensorflow", "tf2onnx", "tensorflow-cpu", "keras", "onnx", "onnxruntime")


STEP: Final = Step(
    name="convert-keras",
    version=1,
    text="a .keras archive to ONNX",
    parameters=Parameters,
    inputs=(Role("model", "the .keras archive that model.save writes"),),
    outputs=(Role("model", "the ONNX model"),),
    tools=_tools,
    run=run,
)
