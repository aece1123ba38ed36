"""Inference bodies that come again with other numbers: what is the same in them is worked out once. Pure.

Of requests that differ only in their numbers and id, all but those is one run of bytes, which is kept; so is all of an
answer's JSON but its numbers. Nothing is decided here: what is kept comes out of infer_codec, which also has whatever
looks the least bit different, so every rule and every error is written once, there. The two agree, as a test shows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import isfinite
from typing import Any, Final

import numpy as np
import orjson

from penstock.errors import PenstockError
from penstock.oip import inference_pb2 as oip
from penstock.tensors import DATATYPES, Buffer, element_count

from . import infer_codec, json_codec
from .infer_codec import Wanted, Written

MAX_KEPT: Final = 256
"""Kinds of requests; of each, as many kinds of answers as MAX_ANSWERS."""
MAX_ANSWERS: Final = 8
MAX_SHAPE_BYTES: Final = 1024
"""Of what is kept of one request or answer."""

_MOST_PACKED: Final = 1 << 14
_ID, _RAW_INPUT, _RAW_OUTPUT = 0x1A, b"\x3a", 0x32  # tags of length-delimited fields
_HEAD_TAGS: Final = frozenset({0x0A, 0x12, 0x22, 0x2A})  # name, version, parameters, outputs
_CODES: Final = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q",
    "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip

_INTEGER: Final = frozenset({int})

Raw = tuple[int, int]
"""Where a tensor's bytes begin and end."""


class Input:
    """One input whose numbers come as JSON. pack: numbers to bytes, where struct can; prefix: tag and size of those."""

    __slots__ = ("count", "datatype", "floats", "kinds", "pack", "prefix", "shape")

    def __init__(self, tensor: oip.ModelInferRequest.InferInputTensor) -> None:
        self.datatype, self.shape = tensor.datatype, list(tensor.shape)
        self.count = element_count(self.shape)
        code = _CODES.get(self.datatype)
        self.floats = self.datatype.startswith("FP")
        self.kinds: frozenset[type] = frozenset({bool} if code == "?" else {int, float} if self.floats else {int})
        self.pack: Callable[..., bytes] | None = None
        if code is not None and self.count <= _MOST_PACKED:
            packer = struct.Struct(f"<{self.count}{code}")
            self.pack, self.prefix = packer.pack, _RAW_INPUT + _varint(packer.size)

    def field(self, data: list[Any]) -> tuple[bytes, bytes] | None:
        """Tag and size, and the bytes; None where infer_codec has to say what is wrong."""
        if self.pack is not None and len(data) == self.count and self.kinds.issuperset(map(type, data)):
            # The sum says little of large numbers, but is finite only if all of them are.
            if self.floats and not isfinite(sum(data)):
                return None
            try:
                return self.prefix, self.pack(*data)
            except (struct.error, OverflowError):
                return None
        try:
            raw = json_codec.to_raw(self.datatype, self.shape, data, "")
        except PenstockError:
            return None
        return _RAW_INPUT + _varint(len(raw)), raw


class Output:
    """One output of an answer. opening: its JSON up to the numbers, or up to the size of its binary part; size: of its
    bytes where they become JSON, None where they go as they are."""

    __slots__ = ("count", "dtype", "floats", "opening", "size")

    def __init__(self, tensor: oip.ModelInferResponse.InferOutputTensor, *, binary: bool) -> None:
        shape = list(tensor.shape)
        text = orjson.dumps({"name": tensor.name, "datatype": tensor.datatype, "shape": shape})[:-1]
        self.opening = text + (b',"parameters":{"binary_data_size":' if binary else b',"data":')
        self.size: int | None = None
        if not binary:
            self.count, self.dtype = element_count(shape), np.dtype(DATATYPES[tensor.datatype].numpy)
            self.floats = self.dtype.kind == "f"
            self.size = self.count * self.dtype.itemsize


class Kind:
    """Requests that are alike. head: all fields but id and tensors; wanted: how outputs should come; in_binary: all
    of them as they are; answers: kinds of answers, by the bytes of all that comes before the tensors but the id, None
    for one that is not prepared."""

    __slots__ = ("answers", "head", "in_binary", "inputs", "wanted")

    def __init__(self, wanted: Wanted, request: oip.ModelInferRequest | None = None) -> None:
        """request: one of them; without it nothing is kept."""
        self.head, self.inputs = b"", []
        self.wanted = wanted
        self.in_binary = wanted.default and all(wanted.outputs.values())
        self.answers: dict[bytes, AnswerKind | None] = {}
        if request is None:
            return
        stripped = oip.ModelInferRequest()
        stripped.CopyFrom(request)
        stripped.ClearField("id")
        stripped.ClearField("raw_input_contents")
        self.head = stripped.SerializeToString()
        self.inputs = [Input(tensor) for tensor in request.inputs]

    def in_full(self, payload: bytes) -> Written:
        """As `written`, without looking at what is kept: for any thread."""
        return infer_codec.write_response(oip.ModelInferResponse.FromString(payload), self.wanted)

    def written(self, payload: bytes) -> Written:
        """The body of an answer with that payload; raises what infer_codec.write_response raises."""
        parts = _take_apart(payload) if self.head else None
        if parts is not None:
            key, id_, raws = parts
            kind = self.answers.get(key)
            if kind is not None and (written := kind.written(payload, id_, raws)) is not None:
                return written
        response = oip.ModelInferResponse.FromString(payload)
        written = infer_codec.write_response(response, self.wanted)
        if parts is not None and len(parts[0]) <= MAX_SHAPE_BYTES and parts[0] not in self.answers:
            if len(self.answers) >= MAX_ANSWERS:
                self.answers.clear()
            self.answers[parts[0]] = _prepare(response, self.wanted)
        return written


class AnswerKind:
    """Answers that are alike."""

    __slots__ = ("_after_id", "_before_id", "_outputs")

    def __init__(self, response: oip.ModelInferResponse, wanted: Wanted) -> None:
        named = {"model_name": response.model_name}
        if response.model_version:
            named["model_version"] = response.model_version
        self._before_id = orjson.dumps(named)[:-1]
        self._after_id = b',"outputs":['
        self._outputs = [Output(output, binary=wanted.binary(output.name)) for output in response.outputs]

    def written(self, payload: bytes, id_: bytes, raws: list[Raw]) -> Written | None:
        """None where infer_codec has to say what is wrong."""
        if len(raws) != len(self._outputs):
            return None
        try:
            text = [self._before_id, b',"id":' + orjson.dumps(id_.decode()) if id_ else b"", self._after_id]
        except UnicodeDecodeError:
            return None
        binary: list[memoryview] = []
        for output, (begin, end) in zip(self._outputs, raws, strict=True):
            text.append(output.opening)
            if output.size is None:
                text.append(b"%d}" % (end - begin))
                binary.append(memoryview(payload)[begin:end])
            else:
                if end - begin != output.size:
                    return None
                array = np.frombuffer(payload, output.dtype, output.count, begin)
                numbers = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
                if output.floats and b"null" in numbers:
                    return None  # NaN or infinite
                text.append(numbers)
            text.append(b"},")
        text[-1] = b"}]}"
        if not binary:
            return Written(b"".join(text), None)
        head = b"".join(text)
        return Written(b"".join((head, *binary)), len(head))


class Prepared:
    """The kinds of requests of one gateway."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], Kind] = {}

    def request(self, model: str, version: str, body: Buffer, json_size: int | None) -> tuple[bytes, Kind]:
        """The serialised ModelInferRequest of a body, and its kind; raises what infer_codec.read_request raises."""
        document, tail = infer_codec.parse(body, json_size)
        key = _key(model, version, document)
        kind = self._kinds.get(key) if key is not None else None
        if kind is not None and (payload := _payload(kind, document, tail.view)) is not None:
            return payload, kind
        request, wanted = infer_codec.read_document(document, tail)
        request.model_name, request.model_version = model, version
        if kind is None:
            kind = Kind(wanted, request if key is not None else None)
            if key is not None and len(kind.head) <= MAX_SHAPE_BYTES:
                if len(self._kinds) >= MAX_KEPT:
                    self._kinds.clear()
                self._kinds[key] = kind
        return request.SerializeToString(), kind


def _key(model: str, version: str, document: Any) -> tuple[Any, ...] | None:
    """What requests of one kind have in common; None for a request that is of no kind that is kept.

    Types are looked at, not only values: 1, 1.0 and true are equal in Python.
    """
    if type(document) is not dict or type(document.get("id", "")) is not str:
        return None
    inputs, parameters, outputs = document.get("inputs"), document.get("parameters"), document.get("outputs")
    if type(inputs) is not list or not 0 < len(inputs) <= infer_codec.MAX_TENSORS:
        return None
    # So many inputs of four parts each, then one part, then outputs of two parts each: no two kinds have one key.
    key: list[Any] = [model, version, len(inputs)]
    for entry in inputs:
        if type(entry) is not dict:
            return None
        name, datatype, shape = entry.get("name"), entry.get("datatype"), entry.get("shape")
        if type(name) is not str or type(datatype) is not str or type(shape) is not list:
            return None
        if "parameters" in entry:
            in_json = False
            if type(_only(entry["parameters"], "binary_data_size")) is not int or "data" in entry:
                return None
        else:
            in_json = True
            if type(entry.get("data")) is not list:
                return None
        if not _INTEGER.issuperset(map(type, shape)):
            return None
        key += (name, datatype, in_json, tuple(shape))
    default = None
    if parameters is not None and type(default := _only(parameters, "binary_data_output")) is not bool:
        return None
    key.append(default)
    if outputs is not None:
        if type(outputs) is not list or len(outputs) > infer_codec.MAX_TENSORS:
            return None
        for entry in outputs:
            if type(entry) is not dict or type(entry.get("name")) is not str:
                return None
            chosen = None
            if "parameters" in entry and type(chosen := _only(entry["parameters"], "binary_data")) is not bool:
                return None
            key += (entry["name"], chosen)
    return tuple(key)


def _only(document: Any, name: str) -> Any:
    """The value of that name in an object that has nothing else; None otherwise."""
    return document.get(name) if type(document) is dict and len(document) == 1 else None


def _payload(kind: Kind, document: Any, tail: memoryview) -> bytes | None:
    """The request's bytes; None where infer_codec has to say what is wrong."""
    pieces: list[bytes | memoryview] = [kind.head]
    if id_ := document.get("id"):
        encoded = id_.encode()
        pieces += (b"\x1a", _varint(len(encoded)), encoded)
    position, end = 0, len(tail)
    for entry, known in zip(document["inputs"], kind.inputs, strict=True):
        if "data" in entry:
            field = known.field(entry["data"])
            if field is None:
                return None
            pieces += field
        else:
            size = entry["parameters"]["binary_data_size"]
            if not 0 <= size <= end - position:
                return None
            pieces += (_RAW_INPUT, _varint(size), tail[position : position + size])
            position += size
    return b"".join(pieces) if position == end else None


def _take_apart(payload: bytes) -> tuple[bytes, bytes, list[Raw]] | None:
    """All before the tensors but the id, the id, and where the tensors are, of a serialised ModelInferResponse whose
    fields come in order of their numbers, as every serializer writes them; None for another one."""
    position, end, last = 0, len(payload), 0
    id_, id_begin, id_end, head_end = b"", 0, 0, 0
    raws: list[Raw] = []
    while position < end:
        tag, start = payload[position], position
        position += 1
        length = shift = 0
        while True:
            if position >= end or shift > 28:
                return None
            byte = payload[position]
            position += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        begin, position = position, position + length
        if position > end or tag < last:
            return None
        last = tag
        if tag == _RAW_OUTPUT:
            raws.append((begin, position))
        elif tag == _ID and not id_:
            id_, id_begin, id_end, head_end = payload[begin:position], start, position, position
        elif tag in _HEAD_TAGS:
            head_end = position
        else:
            return None
    key = payload[:id_begin] + payload[id_end:head_end] if id_ else payload[:head_end]
    return key, id_, raws


def _prepare(response: oip.ModelInferResponse, wanted: Wanted) -> AnswerKind | None:
    """None for answers that are left to infer_codec: with parameters, without raw contents, or not numbers in JSON."""
    plain = not response.parameters and len(response.raw_output_contents) == len(response.outputs) > 0
    for output in response.outputs:
        if output.parameters or not (wanted.binary(output.name) or output.datatype in _CODES):
            plain = False
    return AnswerKind(response, wanted) if plain else None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
