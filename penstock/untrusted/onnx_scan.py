"""Does an ONNX file keep tensors outside itself? Read from its bytes, before any library parses them (pure).

Why not ask the library: ONNX and ONNX Runtime were patched four times in four years for files that name others
(CVE-2022-25882, CVE-2024-27318, CVE-2026-27489, CVE-2026-34446), and not every kind of tensor was walked. Here every
place where the schema can hold a TensorProto is walked: initialisers, sparse ones, attributes of nodes, subgraphs,
functions, training graphs. What this reader cannot follow is refused, so that it can never see less than the runtime.
Format: https://protobuf.dev/programming-guides/encoding/ and onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.errors import InvalidArgument

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
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_OP_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 4, 13, 14


def refuse_external(data: bytes) -> None:
    """Raises InvalidArgument where any tensor of the model lies in another file, or the bytes are not an ONNX model."""
    # ONNX Runtime also reads a format of its own, known by these bytes; it is not ONNX and is not walked here.
    if data[4:8] == b"ORTM":
        raise InvalidArgument("the file is in ONNX Runtime's own format; publish the ONNX file")
    budget = MAX_FIELDS
    pending: list[tuple[str, int, int, int]] = [("Model", 0, len(data), 0)]
    while pending:
        message, start, end, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"the ONNX file nests graphs deeper than {MAX_DEPTH}")
        inside = _TENSORS_IN[message]
        for number, wire, value, size in _fields(data, start, end):
            budget -= 1
            if budget < 0:
                raise InvalidArgument("the ONNX file has more fields than any model needs")
            if message == "Tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and (value or wire))):
                raise InvalidArgument("the ONNX file keeps tensors in other files; publish it with its weights inside")
            if wire != _LENGTH:
                continue
            if message == "Node" and number == _OP_TYPE and data[value : value + size] == b"EPContext":
                raise InvalidArgument("the ONNX file holds an EPContext node, which names a compiled file outside it")
            if number in inside:
                pending.append((inside[number], value, value + size, depth + 1))


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Field number, wire type, value (or offset of the content) and size of the content, one after another."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        value, size = 0, 0
        if wire == _VARINT:
            value, at = _varint(data, at, end)
        elif wire == _LENGTH:
            size, at = _varint(data, at, end)
            value = at
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
            value = at
        else:  # groups: long gone from ONNX, and a way to hide a field from a reader that skips them differently
            raise InvalidArgument("the file is not an ONNX model")
        if wire != _VARINT:
            at += size
        # A tag has 32 bits: a parser that cut a longer one off would see another field than this one.
        if number == 0 or key > 0xFFFF_FFFF or at > end:
            raise InvalidArgument("the file is not an ONNX model, or it is cut short")
        yield number, wire, value, size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise InvalidArgument("the file is not an ONNX model, or it is cut short")
