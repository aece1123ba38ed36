"""Does an ONNX file keep tensors outside itself? Read from its bytes, before any library parses them (pure).

Why not ask the library: ONNX and ONNX Runtime were patched four times in four years for files that name others
(CVE-2022-25882, CVE-2024-27318, CVE-2026-27489, CVE-2026-34446), and not every kind of tensor was walked. Here every
place where the schema can hold a TensorProto is walked: initialisers, sparse ones, attributes of nodes, subgraphs,
functions, training graphs. What this reader cannot follow is refused, so that it can never see less than the runtime.
Format: protobuf.py and onnx.proto3.
"""

from __future__ import annotations

from penstock.errors import InvalidArgument

from .protobuf import LENGTH, fields

MAX_FIELDS = 20_000_000
MAX_DEPTH = 64

# Message -> field number -> message that the field holds. Everything else is skipped by its length.
_TENSORS_IN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_GRAPH, _OP_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 7, 4, 13, 14


def refuse_external(data: bytes) -> None:
    """Raises InvalidArgument where any tensor of the model lies in another file, or the bytes are not an ONNX model."""
    # ONNX Runtime also reads a format of its own, known by these bytes; it is not ONNX and is not walked here.
    if data[4:8] == b"ORTM":
        raise InvalidArgument("the file is in ONNX Runtime's own format; publish the ONNX file")
    budget, graphs = MAX_FIELDS, 0
    pending: list[tuple[str, int, int, int]] = [("Model", 0, len(data), 0)]
    while pending:
        message, start, end, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"the ONNX file nests graphs deeper than {MAX_DEPTH}")
        inside = _TENSORS_IN[message]
        for number, wire, value, size in fields(data, start, end, "an ONNX model"):
            budget -= 1
            if budget < 0:
                raise InvalidArgument("the ONNX file has more fields than any model needs")
            if message == "Tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and (value or wire))):
                raise InvalidArgument("the ONNX file keeps tensors in other files; publish it with its weights inside")
            if wire != LENGTH:
                continue
            if message == "Node" and number == _OP_TYPE and data[value : value + size] == b"EPContext":
                raise InvalidArgument("the ONNX file holds an EPContext node, which names a compiled file outside it")
            if number in inside:
                graphs += message == "Model" and number == _GRAPH
                pending.append((inside[number], value, value + size, depth + 1))
    if not graphs:
        raise InvalidArgument("the file is not an ONNX model: it has no graph")
