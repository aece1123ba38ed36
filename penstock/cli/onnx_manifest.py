"""From an ONNX file to a manifest: what its inputs and outputs are, and whether its first dimension is a batch.

Only the graph's outline is read; weights in separate files are not opened. Imports `onnx`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError

from penstock.errors import InvalidArgument

MAX_BATCH_SIZE: Final = 32
DATATYPES: Final = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.STRING: "BYTES",
}

Dimension = int | str | None
"""A fixed size, the name of a free one, or None for a free one without a name."""


@dataclass(frozen=True, slots=True)
class Outline:
    """A tensor of the graph; dims is None when the file does not say its rank."""

    name: str
    datatype: str
    dims: tuple[Dimension, ...] | None


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor of the manifest; shape without the batch dimension when there is one; named: the free dimensions."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Draft:
    """What the file says. max_batch_size 0: no batch dimension; files: weights in files of their own, by role."""

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    max_batch_size: int
    files: dict[str, str]
    producer: str
    notes: tuple[str, ...]


def describe(path: Path) -> Draft:
    """Reads a file's outline; raises InvalidArgument when it is no ONNX model or has nothing that can be served."""
    model = _load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    notes: list[str] = []
    inputs = [_outline(value) for value in model.graph.input if value.name not in weights]
    outputs = []
    for value in model.graph.output:
        try:
            outputs.append(_outline(value))
        except InvalidArgument as error:
            notes.append(f"{error.message}: left out (scikit-learn models: convert with options={{'zipmap': False}})")
    if not inputs or not outputs:
        raise InvalidArgument("the model has no tensor that could be its " + ("output" if inputs else "input"))
    batched = has_batch(inputs, outputs)
    if not batched:
        notes.append("no common free first dimension: requests run one by one (max_batch_size: 0)")
    for tensor in (*inputs, *outputs):
        if tensor.dims is None:
            notes.append(f"the file does not say the shape of {tensor.name!r}: correct it in the manifest")
    return Draft(
        inputs=tuple(spec_of(tensor, batched) for tensor in inputs),
        outputs=tuple(spec_of(tensor, batched) for tensor in outputs),
        max_batch_size=MAX_BATCH_SIZE if batched else 0,
        files=_external_files(model),
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        notes=tuple(notes),
    )


def has_batch(inputs: Sequence[Outline], outputs: Sequence[Outline]) -> bool:
    """Whether the first dimension is a batch: free in every input and output, and nowhere under two names.

    An output whose shape the file does not say, or whose first dimension has another name, does not count against it:
    exporters name an output's dimension as they like, but inputs that must agree have one name.
    """
    first = [tensor.dims[0] if tensor.dims else 0 for tensor in inputs]
    if any(isinstance(dimension, int) for dimension in first):
        return False
    if len({dimension for dimension in first if dimension}) > 1:
        return False
    return not any(
        tensor.dims is not None and (not tensor.dims or isinstance(tensor.dims[0], int)) for tensor in outputs
    )


def spec_of(tensor: Outline, batched: bool) -> Spec:
    """The tensor as a manifest describes it; an unknown shape becomes one free dimension."""
    if tensor.dims is None:
        return Spec(tensor.name, tensor.datatype, (-1,))
    dims = tensor.dims[1:] if batched else tensor.dims
    shape = tuple(dimension if isinstance(dimension, int) else -1 for dimension in dims)
    return Spec(tensor.name, tensor.datatype, shape, tuple(d for d in dims if isinstance(d, str)))


def render(draft: Draft, name: str, file: str) -> str:
    """The manifest as commented YAML. Texts are written as JSON strings, which YAML reads alike."""
    files = {"model": file, **{role: _beside(file, weights) for role, weights in draft.files.items()}}
    lines = [
        "# Describes the model for Penstock. Every field: docs/model.schema.json; check and upload: penstock publish .",
        "schema: penstock/v1",
        f"name: {_quoted(name)}",
        'description: ""  # what it does, for people',
        'author: ""  # who answers for it',
        "tags: {}  # labels for search, such as {task: image-classification}",
        *([f"# The file says it was made by {_comment(draft.producer)}."] if draft.producer else []),
        'framework: ""  # such as scikit-learn',
        "format: onnx",
        "files:  # below this folder",
        *(f"  {role}: {_quoted(path)}" for role, path in files.items()),
        "",
    ]
    if draft.max_batch_size:
        lines.append("# Shapes are those of one item: the batch dimension, the first, is left out. -1: any size.")
    else:
        lines.append("# Shapes are whole: the model has no batch dimension. -1: any size.")
    for title, tensors in (("inputs", draft.inputs), ("outputs", draft.outputs)):
        lines += [f"{title}:", *(_tensor_line(tensor) for tensor in tensors)]
    lines += ["", "batching:"]
    if draft.max_batch_size:
        lines.append(f"  max_batch_size: {draft.max_batch_size}  # largest batch the engine gets")
    else:
        lines.append("  max_batch_size: 0  # requests run one by one")
    lines += [
        "  # max_queue_delay_microseconds: 0  # how long an incomplete batch may wait for more",
        "# resources:",
        "#   memory_bytes: 0  # what a replica needs; else twice the files and 64 MiB",
        "# preprocess:  # built-in steps, such as",
        "#   - image: {input: image, output: pixels, width: 224, height: 224}",
        "",
    ]
    return "\n".join(lines)


def _load(path: Path) -> Any:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError):
        raise InvalidArgument(f"{path}: not an ONNX model") from None
    if not model.graph.input and not model.graph.output and not model.graph.node:
        raise InvalidArgument(f"{path}: not an ONNX model")
    if all(value.type.tensor_type.HasField("shape") for value in model.graph.output):
        return model
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:
        # A help only: the note about the unknown shape stays.
        return model


def _outline(value: Any) -> Outline:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InvalidArgument(f"{value.name!r} is a {str(kind).removesuffix('_type')}, not a tensor")
    tensor = value.type.tensor_type
    datatype = DATATYPES.get(tensor.elem_type)
    if datatype is None:
        raw = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise InvalidArgument(f"{value.name!r} is {raw}, which the inference protocol cannot carry")
    if not tensor.HasField("shape"):
        return Outline(value.name, datatype, None)
    return Outline(value.name, datatype, tuple(_dimension(dimension) for dimension in tensor.shape.dim))


def _dimension(dimension: Any) -> Dimension:
    if dimension.HasField("dim_value") and dimension.dim_value > 0:
        return int(dimension.dim_value)
    return str(dimension.dim_param) or None


def _external_files(model: Any) -> dict[str, str]:
    """Weights that lie in files of their own, in the order of their first use."""
    found: dict[str, None] = {}
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                found[entry.value] = None
    return {"weights" if index == 0 else f"weights-{index + 1}": path for index, path in enumerate(found)}


def _beside(file: str, weights: str) -> str:
    """ONNX names weights relative to the model; a manifest names them relative to itself."""
    return (Path(file).parent / weights).as_posix()


def _tensor_line(tensor: Spec) -> str:
    line = f"  - {{name: {_quoted(tensor.name)}, datatype: {tensor.datatype}, shape: {json.dumps(list(tensor.shape))}}}"
    return f"{line}  # {', '.join(map(_comment, tensor.named))}" if tensor.named else line


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _comment(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
