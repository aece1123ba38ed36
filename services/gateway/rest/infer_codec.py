"""One inference request and its answer between an HTTP body and the protocol's messages. Pure.

Raw contents are built once: JSON data becomes raw bytes here, binary data is cut out of the body, and from then on the
gateway passes bytes on. Keys that the protocol does not know are ignored, as Triton ignores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from penstock.errors import Internal, InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.tensors import MAX_ELEMENTS, Buffer, element_count

from . import binary, json_codec, json_text

MAX_TENSORS: Final = 1024
MAX_RANK: Final = 32

_SHARED_MEMORY: Final = "shared_memory_region"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How outputs should come: `default` for those not in `outputs`; True is binary, False is JSON."""

    default: bool = False
    outputs: Mapping[str, bool] = field(default_factory=dict)

    def binary(self, name: str) -> bool:
        return self.outputs.get(name, self.default)


ALL_BINARY: Final = Wanted(default=True)


@dataclass(slots=True)
class Written:
    """Body of an answer. json_size: bytes of its JSON part when tensors follow, None when everything is JSON."""

    body: bytes
    json_size: int | None


def read_request(body: Buffer, json_size: int | None) -> tuple[oip.ModelInferRequest, Wanted]:
    """The request of a body, without model name and version, and how its outputs should come.

    json_size: value of Inference-Header-Content-Length, None without that header. Raises InvalidArgument naming the
    field, or TooLarge.
    """
    return read_document(*parse(body, json_size))


def parse(body: Buffer, json_size: int | None) -> tuple[object, binary.Tail]:
    """JSON part and binary part of a body; raises InvalidArgument, TooLarge."""
    text, tail = binary.split(body, json_size)
    return json_text.parse(text), tail


def read_document(document: object, tail: binary.Tail) -> tuple[oip.ModelInferRequest, Wanted]:
    """As `read_request`, of a body that has been parsed."""
    if not isinstance(document, dict):
        raise InvalidArgument("body: must be a JSON object", field="body")
    request = oip.ModelInferRequest()
    request.id = _text(document.get("id", ""), "id")
    parameters = json_codec.parameters_in(document.get("parameters"), "parameters")
    default = _flag(parameters.pop("binary_data_output", None), "parameters.binary_data_output")
    _copy(parameters, request.parameters)
    if "inputs" not in document:
        raise InvalidArgument("inputs: missing; a request needs at least its input tensors", field="inputs")
    for index, entry in enumerate(_objects(document["inputs"], "inputs")):
        _read_input(entry, f"inputs[{index}]", tail, request)
    tail.finish()
    outputs: dict[str, bool] = {}
    for index, entry in enumerate(_objects(document.get("outputs") or [], "outputs")):
        _read_output(entry, f"outputs[{index}]", request, outputs)
    return request, Wanted(bool(default), outputs)


def write_response(response: oip.ModelInferResponse, wanted: Wanted) -> Written:
    """The body of an answer.

    Raises InvalidArgument where an output must be asked for as binary, Internal when the answer is broken.
    """
    document: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        document["model_version"] = response.model_version
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = json_codec.parameters_out(response.parameters)
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        detail = f"{len(raw)} buffers for {len(response.outputs)} outputs"
        raise Internal("the model answered with a broken message", detail=detail)
    document["outputs"] = outputs = []
    buffers: list[bytes] = []
    for index, output in enumerate(response.outputs):
        content = raw[index] if raw else json_codec.raw_of(output)
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = json_codec.parameters_out(output.parameters)
        if _SHARED_MEMORY in parameters:
            pass  # its data is where the caller wanted it
        elif wanted.binary(output.name):
            parameters["binary_data_size"] = len(content)
            buffers.append(content)
        else:
            entry["data"] = json_codec.to_data(output.datatype, output.shape, content, f"outputs[{index}].data")
        if parameters:
            entry["parameters"] = parameters
        outputs.append(entry)
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not buffers:
        return Written(text, None)
    return Written(b"".join((text, *buffers)), len(text))


def _read_input(entry: dict[str, Any], path: str, tail: binary.Tail, request: oip.ModelInferRequest) -> None:
    name = _text(entry.get("name"), f"{path}.name")
    kind = _text(entry.get("datatype"), f"{path}.datatype")
    shape = _shape(entry.get("shape"), f"{path}.shape")
    parameters = json_codec.parameters_in(entry.get("parameters"), f"{path}.parameters")
    size = parameters.pop("binary_data_size", None)
    if _SHARED_MEMORY in parameters:
        if size is not None or "data" in entry:
            message = f"{path}: both data and `parameters.{_SHARED_MEMORY}`; a tensor takes one of them"
            raise InvalidArgument(message, field=f"{path}.data")
        _copy(parameters, request.inputs.add(name=name, datatype=kind, shape=shape).parameters)
        return
    if size is None:
        if "data" not in entry:
            message = f"{path}: neither `data` nor `parameters.binary_data_size`; a tensor needs one of them"
            raise InvalidArgument(message, field=f"{path}.data")
        raw = json_codec.to_raw(kind, shape, entry["data"], f"{path}.data")
    else:
        if "data" in entry:
            message = f"{path}: both `data` and `parameters.binary_data_size`; a tensor takes one of them"
            raise InvalidArgument(message, field=f"{path}.data")
        where = f"{path}.parameters.binary_data_size"
        raw = tail.take(size.int64_param if size.HasField("int64_param") else None, where)
    _copy(parameters, request.inputs.add(name=name, datatype=kind, shape=shape).parameters)
    request.raw_input_contents.append(raw)


def _read_output(entry: dict[str, Any], path: str, request: oip.ModelInferRequest, outputs: dict[str, bool]) -> None:
    name = _text(entry.get("name"), f"{path}.name")
    parameters = json_codec.parameters_in(entry.get("parameters"), f"{path}.parameters")
    chosen = _flag(parameters.pop("binary_data", None), f"{path}.parameters.binary_data")
    if chosen is not None:
        outputs[name] = chosen
    _copy(parameters, request.outputs.add(name=name).parameters)


def _copy(parameters: Mapping[str, oip.InferParameter], target: Any) -> None:
    for name, parameter in parameters.items():
        target[name].CopyFrom(parameter)


def _objects(value: object, path: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidArgument(f"{path}: must be an array of objects", field=path)
    if len(value) > MAX_TENSORS:
        raise InvalidArgument(f"{path}: more than {MAX_TENSORS} tensors", field=path)
    return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{path}: must be a string", field=path)
    return value


def _flag(parameter: oip.InferParameter | None, path: str) -> bool | None:
    if parameter is None:
        return None
    if not parameter.HasField("bool_param"):
        raise InvalidArgument(f"{path}: must be true or false", field=path)
    return parameter.bool_param


def _shape(value: object, path: str) -> list[int]:
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise InvalidArgument(f"{path}: must be an array of integers", field=path)
    if len(value) > MAX_RANK:
        raise InvalidArgument(f"{path}: more than {MAX_RANK} dimensions", field=path)
    if any(dimension > MAX_ELEMENTS for dimension in value):
        raise InvalidArgument(f"{path}: a dimension is over 2**40", field=path)
    element_count(value, path)
    return value
