"""`convert-savedmodel`: one signature of a TensorFlow SavedModel to ONNX, by tf2onnx.

TensorFlow's loader is never called: it runs initialisers, restores by names that the file gives, and calls whatever
operator the graph holds. The graph is cut down to the signature's computation and held against a list of operators
before TensorFlow sees it (penstock/untrusted/saved_model.py); the variables' values are read from the checkpoint by
name and put into the graph as constants.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from penstock.errors import InvalidArgument, InvalidManifest
from penstock.untrusted import saved_model
from penstock.untrusted.words import public

from ..step import Role, Step, StepContext, StepResult, installed
from . import tensorflow_graph

MAX_GRAPH: Final = 2**31 - 1  # a protobuf message cannot be larger
_PREFIX: Final = "variables"
_NUMBERS: Final = frozenset(
    ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "bool")
) | {f"uint{bits}" for bits in (8, 16, 32, 64)}


@dataclass(frozen=True)
class Parameters:
    """signature: which of the SavedModel's. names: tensor of the signature → its name in ONNX; the same where it is
    not listed. opset: of the standard operators."""

    signature: str = "serving_default"
    names: Mapping[str, str] = field(default_factory=dict)
    opset: int = 18

    def __post_init__(self) -> None:
        tensorflow_graph.check_opset(self.opset)


def run(work: StepContext[Parameters]) -> StepResult:
    """Cuts, freezes, converts, compares, writes `model`."""
    path = work.inputs["graph"]
    if path.stat().st_size > MAX_GRAPH:
        raise InvalidManifest("graph: saved_model.pb cannot be larger than 2 GiB", field="graph")
    try:
        program = saved_model.read(path.read_bytes(), work.parameters.signature)
    except InvalidArgument as error:
        raise InvalidManifest(f"graph: {error.message}", field="graph") from None
    work.say(f"the signature computes {', '.join(program.outputs)} of {', '.join(program.inputs) or 'nothing'}")
    inputs, outputs = sorted(program.inputs), sorted(program.outputs)
    tensorflow_graph.check_names(work.parameters.names, [*inputs, *outputs], "convert-savedmodel")
    names = tensorflow_graph.renamed([*inputs, *outputs], work.parameters.names)
    tensorflow_graph.distinct(names, "convert-savedmodel")
    tensorflow_graph.quiet(work.threads)
    values = _values(work, program.variables)
    work.progress(0.3)
    try:
        function = _function(program, inputs, outputs, values)
    except InvalidManifest:
        raise
    except Exception as error:  # whatever TensorFlow makes of a graph that contradicts itself
        raise tensorflow_graph.cannot(public(error), repr(error)) from None
    work.progress(0.5)
    model = tensorflow_graph.converted(function, names[: len(inputs)], names[len(inputs) :], work.parameters.opset)
    read = sum(file.stat().st_size for file in work.inputs.values())
    return tensorflow_graph.written(work, model, read, function)


def _values(work: StepContext[Parameters], variables: Mapping[str, str]) -> dict[str, Any]:
    """The value of every variable, out of the checkpoint's files; TensorFlow reads them under names of ours."""
    if not variables:
        return {}
    shards = work.several("weights")
    if "index" not in work.inputs or not shards:
        raise InvalidManifest(
            "index: the graph has variables; name variables/variables.index as `index` and its data as `weights`",
            field="index",
        )
    import tensorflow

    folder = work.folder / "checkpoint"
    folder.mkdir()
    try:
        shutil.copyfile(work.inputs["index"], folder / f"{_PREFIX}.index")
        for number, shard in enumerate(shards):
            name = f"{_PREFIX}.data-{number:05}-of-{len(shards):05}"
            _link_or_copy(shard, folder / name)
        reader = tensorflow.train.load_checkpoint(str(folder / _PREFIX))
        kinds = reader.get_variable_to_dtype_map()
        found = {}
        for name, key in variables.items():
            if key not in kinds or kinds[key].name not in _NUMBERS:
                raise InvalidManifest(f"index: the checkpoint has no numbers {key[:60]!r}", field="index")
            found[name] = reader.get_tensor(key)
        return found
    except InvalidManifest:
        raise
    except Exception as error:  # of a C++ reader, without a class of its own
        raise InvalidManifest(
            "index: the checkpoint is damaged, or lacks a file of its data", field="index", detail=repr(error)
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # inputs may lie on another file system
        shutil.copyfile(source, target)


def _function(program: saved_model.Program, inputs: list[str], outputs: list[str], values: dict[str, Any]) -> Any:
    import tensorflow
    from tensorflow.core.framework import graph_pb2

    definition = graph_pb2.GraphDef()
    definition.ParseFromString(program.graph)
    for node in (*definition.node, *(node for each in definition.library.function for node in each.node_def)):
        # Where a node runs, and shapes that TensorFlow works out again: what they name may have been left behind.
        node.device = ""
        node.attr.pop("_class", None)
        node.attr.pop("_output_shapes", None)
    plain = tensorflow.Graph()
    with plain.as_default():
        tensorflow.graph_util.import_graph_def(definition, name="")
    feeds = [program.inputs[name] for name in inputs]
    specs = [
        tensorflow.TensorSpec(tensor.shape, tensor.dtype)
        for tensor in (plain.get_tensor_by_name(name) for name in feeds)
    ]
    variables = {name: tensorflow.Variable(value) for name, value in values.items()}
    kept = [node for node in definition.node if node.name not in variables]
    definition.ClearField("node")
    definition.node.extend(kept)

    def call(*tensors: Any) -> Any:
        graph = tensorflow.compat.v1.get_default_graph()
        places = dict(zip(feeds, tensors, strict=True))
        for name, variable in variables.items():
            graph.watch_variable(variable)
            places[f"{name}:0"] = graph.capture(variable.handle)
        wanted = [program.outputs[name] for name in outputs]
        return tensorflow.graph_util.import_graph_def(definition, places, wanted, name="model")

    return tensorflow_graph.frozen(call, specs)


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build-tensorflow", "tf2onnx", "tensorflow-cpu", "onnx", "onnxruntime")


STEP: Final = Step(
    name="convert-savedmodel",
    version=1,
    text="a signature of a TensorFlow SavedModel to ONNX",
    parameters=Parameters,
    inputs=(
        Role("graph", "saved_model.pb"),
        Role("index", "variables/variables.index", required=False),
        Role(
            "weights", "variables/variables.data-00000-of-00001, further shards in order", required=False, several=True
        ),
    ),
    outputs=(Role("model", "the ONNX model"),),
    tools=_tools,
    run=run,
)
