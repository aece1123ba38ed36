"""`convert-tflite`: a TensorFlow Lite model to ONNX, by tf2onnx.

Of TensorFlow's formats this is the one that holds a graph and numbers only. The others have steps of their own, which
look at them first; a file of theirs is refused with the step that takes it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted.words import public

from ..step import Role, Step, StepContext, StepResult, installed
from . import tensorflow_graph
from .convert_torch import rename_tensors
from .tensorflow_graph import cannot

MAGIC: Final = b"TFL3"
KINDS: Final = {
    b"PK": "a Keras archive; publish it as format keras (convert-keras)",
    b"\x89HDF": "a Keras HDF5 file; save it as .keras with Keras 3 and publish that as format keras (convert-keras)",
    b"\x08\x01": "a SavedModel; publish it as format savedmodel (convert-savedmodel)",
}


@dataclass(frozen=True)
class Parameters:
    """opset: of the standard operators. inputs, outputs: names in the file's order; its own where empty."""

    opset: int = 18
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tensorflow_graph.check_opset(self.opset)
        if max(Counter([*self.inputs, *self.outputs]).values(), default=1) > 1:
            raise InvalidArgument("every input and output needs a name of its own", field="inputs")


def run(work: StepContext[Parameters]) -> StepResult:
    """Converts, names inputs and outputs, writes `model`."""
    path = work.inputs["model"]
    refuse_code(path)
    tensorflow_graph.quiet(work.threads)
    model = _converted(path, work.parameters.opset)
    names: dict[str, str] = {}
    for kind, values in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        own = [value.name for value in values]
        wanted = list(getattr(work.parameters, kind)) or [_plain(name) for name in own]
        if len(wanted) != len(own):
            raise InvalidArgument(
                f"convert-tflite.{kind}: the model has {len(own)}, and {len(wanted)} names were given",
                field=f"convert-tflite.{kind}",
            )
        names |= dict(zip(own, wanted, strict=True))
    if max(Counter(names.values()).values()) > 1:
        raise InvalidArgument("convert-tflite.outputs: an output has an input's name; name them", field="outputs")
    rename_tensors(model, names)
    return tensorflow_graph.written(work, model, path.stat().st_size)


def refuse_code(path: Path) -> None:
    """Raises InvalidManifest for what is no TensorFlow Lite file, in words of what to do."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] != MAGIC:
        other = "no TensorFlow Lite model; make one with tf.lite.TFLiteConverter"
        kind = next((words for magic, words in KINDS.items() if head.startswith(magic)), other)
        raise InvalidManifest(f"model: this is {kind}", field="model")


def _converted(path: Path, opset: int) -> Any:
    import tf2onnx

    try:
        model, outside = tf2onnx.convert.from_tflite(str(path), opset=opset)
    except Exception as error:  # a flatbuffer's own errors, TensorFlow's, and plain ones
        raise cannot(public(error), repr(error)) from None
    tensorflow_graph.check(model, outside)
    return model


def _plain(name: str) -> str:
    """TensorFlow's `serving_default_pixels:0` as `pixels`."""
    return name.partition(":")[0].removeprefix("serving_default_")


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build-tensorflow", "tf2onnx", "tensorflow-cpu", "onnx")


STEP: Final = Step(
    name="convert-tflite",
    version=3,
    text="a TensorFlow Lite model to ONNX",
    parameters=Parameters,
    inputs=(Role("model", "a .tflite file"),),
    outputs=(Role("model", "the ONNX model"),),
    tools=_tools,
    run=run,
)
