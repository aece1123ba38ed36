"""`halve`: float32 to float16 or bfloat16, with casts where types meet, as strongly typed networks need them.

TensorRT takes the types that the graph says and converts nothing by itself, so every operator must get inputs that
agree. One rule keeps that: a tensor's own name always means float32, and `name/half` its half twin. A node runs in
half where its schema allows that for every float32 input, where none of its constants is lost and where it is not
named to stay; each twin is made at most once, by the node itself, by folding a constant, or by a Cast where something
asks for it. Inputs and outputs of the model keep their types, so its manifest still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidArgument

from ..step import Role, Step, StepContext, StepResult, installed
from . import onnx_file, report, samples
from .session import Session

Array = NDArray[Any]

FLOAT, HALF, BFLOAT = 1, 10, 16  # TensorProto.DataType
LARGEST: Final = {"fp16": 65504.0, "bf16": 3.38e38}
SMALLEST: Final = {"fp16": 5.97e-8, "bf16": 9.2e-41}
# A value that the samples show near the end of the range may pass it on others.
HEADROOM = 0.5
# Sums of many terms, and functions whose result grows or loses all its digits in half.
SENSITIVE: Final = (
    "CumSum", "Exp", "GlobalLpPool", "Log", "LpNormalization", "MeanVarianceNormalization", "Pow", "Range", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
# Control flow reads tensors by name from inside: it stays as it is, and so does what it reads.
FLOW: Final = ("If", "Loop", "Scan", "SequenceMap")
OPSET: Final = {"fp16": 13, "bf16": 17}


@dataclass(frozen=True)
class Parameters:
    """precision: fp16 or bf16. keep: names of nodes or operators that stay float32, beside `SENSITIVE`. headroom: with
    samples, a node whose values come nearer to float16's end than this share of it stays float32."""

    precision: Literal["fp16", "bf16"] = "fp16"
    keep: tuple[str, ...] = ()
    headroom: float = HEADROOM
    rows: int = 8
    seed: int = 0


def run(work: StepContext[Parameters]) -> StepResult:
    """Converts, writes `model`, and compares it with the source."""
    parameters = work.parameters
    source = onnx_file.read(work.inputs["model"])
    model = onnx_file.inferred(lifted(source, OPSET[parameters.precision]))
    stay = set(parameters.keep)
    if "samples" in work.inputs and parameters.precision == "fp16":
        feeds = samples.measuring(
            work.inputs["samples"], model, Session(model.SerializeToString(), work.threads), parameters.rows, 0
        )
        found = beyond(model, feeds, LARGEST["fp16"] * parameters.headroom, work.threads)
        work.say(f"{len(found)} nodes stay float32 because their values come near the end of float16's range")
        stay |= found
    work.progress(0.3)
    conversion = Conversion(model, parameters.precision, stay)
    made = conversion.convert()
    work.say(f"{conversion.converted} of {len(model.graph.node)} nodes run in {parameters.precision}")
    path = onnx_file.write(made, work.folder / "model.onnx")
    work.progress(0.6)
    told = report.compared(work, source, path, parameters.precision, parameters.rows, parameters.seed)
    return StepResult({"model": path}, {**told, "converted": conversion.converted, "casts": conversion.casts})


def lifted(model: Any, opset: int) -> Any:
    """The model at least at this version of the standard operators, where half types are complete."""
    if not 0 < onnx_file.opset(model) < opset:
        return model
    import onnx

    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # a C++ exception without a class of its own
        raise InvalidArgument(
            f"model: it uses operators of opset {onnx_file.opset(model)}, which cannot be lifted to {opset}; "
            f"export it again with opset {opset} or newer",
            field="model",
            detail=str(error),
        ) from None


def beyond(model: Any, feeds: Mapping[str, Array], limit: float, threads: int) -> set[str]:
    """Names of nodes that read or give a number beyond `limit`, on these inputs."""
    import onnx

    kinds = onnx_file.types(model)
    given = {value.name for value in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if kinds.get(name) == FLOAT]
    open_ = onnx.ModelProto()
    open_.CopyFrom(model)
    open_.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in inner if name not in given
    )
    values = Session(open_.SerializeToString(), threads).run(feeds)
    large = {name for name, array in values.items() if array.size and not float(np.abs(array).max()) < limit}
    large |= {name for name, array in feeds.items() if array.dtype.kind == "f" and not np.abs(array).max() < limit}
    return {node.name for node in model.graph.node if large & {*node.input, *node.output}}


@dataclass
class Conversion:
    """One conversion of a model whose types are inferred. converted, casts: how many nodes run in half, were added."""

    model: Any
    precision: str
    stay: set[str]
    converted: int = 0
    casts: int = 0
    _nodes: list[Any] = field(default_factory=list)
    _wide: set[str] = field(default_factory=set)
    _half: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._kind = HALF if self.precision == "fp16" else BFLOAT
        self._types = onnx_file.types(self.model)
        self._constants = onnx_file.constants(self.model)
        self._wide |= {*self._constants, *(value.name for value in self.model.graph.input)}

    def convert(self) -> Any:
        """The converted model; a new one."""
        import onnx

        for node in self.model.graph.node:
            self._take(node)
        for value in self.model.graph.output:
            self._as_float(value.name)
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend(self._nodes)
        made.graph.initializer.extend(
            self._folded(self._constants[name]) for name in sorted(self._half & set(self._constants))
        )
        onnx_file.drop_unused(made)
        return made

    def _take(self, node: Any) -> None:
        import onnx

        made = onnx.NodeProto()
        made.CopyFrom(node)
        slots = self._slots(node)
        if slots is None:
            for name in onnx_file.read_by(node):
                self._as_float(name)
            self._wide.update(node.output)
        else:
            inputs, outputs = slots
            for index in inputs:
                made.input[index] = self._as_half(node.input[index])
            for index, name in enumerate(node.input):
                if index not in inputs:
                    self._as_float(name)
            for index, name in enumerate(node.output):
                if index in outputs:
                    made.output[index] = _twin(name)
                    self._half.add(name)
                else:
                    self._wide.add(name)
            self.converted += 1
        self._nodes.append(made)

    def _slots(self, node: Any) -> tuple[set[int], set[int]] | None:
        """Indexes of the inputs and outputs that become half; None where the node stays as it is."""
        import onnx

        if node.op_type in (*FLOW, *SENSITIVE, "Constant") or {node.name, node.op_type} & self.stay:
            return None
        try:
            schema = onnx.defs.get_schema(node.op_type, onnx_file.opset(self.model), node.domain)
        except onnx.defs.SchemaError:  # an operator of somebody's own
            return None
        allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
        kind = "tensor(float16)" if self._kind == HALF else "tensor(bfloat16)"
        inputs = set()
        variables = set()
        for index, name in enumerate(node.input):
            variable = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
            if name and name not in self._types:  # of an operator of somebody's own: nobody knows what it gives
                return None
            if name and self._types.get(name) == FLOAT and variable in allowed:
                if kind not in allowed[variable] or not self._survives(name):
                    return None
                inputs.add(index)
                variables.add(variable)
        outputs = {
            index
            for index, name in enumerate(node.output)
            if name and schema.outputs[min(index, len(schema.outputs) - 1)].type_str in variables
        }
        return (inputs, outputs) if inputs else None

    def _survives(self, name: str) -> bool:
        """Whether a constant still means something in half: nothing overflows, and a number of its own is not lost."""
        if name not in self._constants:
            return True
        from onnx import numpy_helper

        values = np.abs(numpy_helper.to_array(self._constants[name]))
        finite = values[np.isfinite(values)]
        if finite.size and finite.max() > LARGEST[self.precision]:
            return False
        return values.size != 1 or not 0 < float(values.max()) < SMALLEST[self.precision]

    def _as_float(self, name: str) -> None:
        """Sees to it that the tensor is there in float32."""
        if name in self._half and name not in self._wide:
            self._cast(_twin(name), name, FLOAT)
            self._wide.add(name)

    def _as_half(self, name: str) -> str:
        """The name of the half twin, which is there from now on."""
        if name not in self._half:
            self._half.add(name)
            if name not in self._constants:
                self._cast(name, _twin(name), self._kind)
        return _twin(name)

    def _cast(self, source: str, target: str, kind: int) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=kind))
        self.casts += 1

    def _folded(self, tensor: Any) -> Any:
        from onnx import helper, numpy_helper

        values = numpy_helper.to_array(tensor)
        if self._kind == HALF:
            return numpy_helper.from_array(values.astype(np.float16), _twin(tensor.name))
        return helper.make_tensor(_twin(tensor.name), BFLOAT, tensor.dims, rounded(values).tobytes(), raw=True)


def rounded(values: Array) -> Array:
    """float32 to the bits of bfloat16, to the nearest and to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    near = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), near).astype("<u2")


def _twin(name: str) -> str:
    return f"{name}/half"


def _tools(parameters: Parameters) -> dict[str, str]:
    return installed("build", "numpy", "onnx", "onnxruntime")


STEP: Final = Step(
    name="halve",
    version=1,
    text="float32 to float16 or bfloat16, with the casts that strongly typed networks need",
    parameters=Parameters,
    inputs=(
        Role("model", "an ONNX model in float32"),
        Role("samples", "inputs by name, for ranges and the comparison", required=False),
        Role("evaluation", "inputs by name and labels, for accuracy before and after", required=False),
    ),
    outputs=(Role("model", "the ONNX model in half precision"),),
    tools=_tools,
    run=run,
)
