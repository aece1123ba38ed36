"""`convert-tflite`: a TensorFlow Lite model to ONNX, by tf2onnx.

Of TensorFlow's formats this is the one that holds a graph and numbers only. A SavedModel may hold operators that read
and write files, and loading a Keras file has run code of its author's more than once although told to be safe; both
are refused with how to make a `.tflite` of them.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted.words import public

from ..step import Role, Step, StepContext, StepResult, installed
from . import onnx_file
from .convert_torch import rename_tensors

MAGIC: Final = b"TFL3"
INSTEAD: Final = "make a .tflite of it with tf.lite.TFLiteConverter"
KINDS: Final = {
    b"PK": "a Keras archive, whose loader may run code of its author's",
    b"\x89HDF": "a Keras HDF5 file, whose loader may run code of its author's",
    b"\x08\x01": "a SavedModel, whose operators may read files",
}


@dataclass(frozen=True)
class Parameters:
    """opset: of the standard operators. inputs, outputs: names in the file's order; its own where empty."""

    opset: int = 18
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 13 <= self.opset <= 18:
            raise InvalidArgument("13 to 18 is needed", field="opset")
        if max(Counter([*self.inputs, *self.outputs]).values(), default=1) > 1:
            raise InvalidArgument("every input and output needs a name of its own", field="inputs")


def run(work: StepContext[Parameters]) -> StepResult:
    """Converts, names inputs and outputs, writes `model`."""
    path = work.inputs["model"]
    refuse_code(path)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
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
    made = onnx_file.write(model, work.folder / "model.onnx")
    inputs, outputs = ([value.name for value in values] for values in (model.graph.input, model.graph.output))
    work.say(f"{made.stat().st_size:,} bytes, inputs {', '.join(inputs)}, outputs {', '.join(outputs)}")
    return StepResult(
        {"model": made},
        {
            "before": {"bytes": path.stat().st_size},
            "after": onnx_file.summary(made, model),
            "inputs": inputs,
            "outputs": outputs,
            "interface": onnx_file.interface(model),
        },
    )


def refuse_code(path: Path) -> None:
    """Raises InvalidManifest for what is no TensorFlow Lite file, in words of what to do."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] != MAGIC:
        kind = next((words for magic, words in KINDS.items() if head.startswith(magic)), "no TensorFlow Lite model")
        raise InvalidManifest(f"model: this is {kind}; {INSTEAD}", field="model")


def _converted(path: Path, opset: int) -> Any:
    import tf2onnx

    try:
        model, outside = tf2onnx.convert.from_tflite(str(path), opset=opset)
    except Exception as error:  # a flatbuffer's own errors, TensorFlow's, and plain ones
        raise _cannot(public(error), repr(error)) from None
    if outside:
        raise _cannot("it is larger than an ONNX file can be")
    strange = sorted({node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx", "ai.onnx.ml")})
    if strange:
        raise _cannot(f"the operator {public(strange[0], 60)} has no conversion to ONNX; build the model without it")
    return model


def _cannot(words: str, detail: str = "") -> InvalidManifest:
    return InvalidManifest(f"model: it cannot be converted: {words}", field="model", detail=detail)


def _plain(name: str) -> str:
    """TensorFlow's `serving_default_pixels:0` as `pixels`."""
    return name.partition(":")[0].removeprefix("serving_default_")


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build-tensorflow", "tf2onnx", "tensorflow-cpu", "onnx")


STEP: Final = Step(
    name="convert-tflite",
    version=2,
    text="a TensorFlow Lite model to ONNX",
    parameters=Parameters,
    inputs=(Role("model", "a .tflite file"),),
    outputs=(Role("model", "the ONNX model"),),
    tools=_tools,
    run=run,
)
