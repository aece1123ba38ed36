"""ModelInferRequest ↔ what the batcher takes. Every rule of the protocol about contents is kept here, once.

`decode` believes nothing: names, datatypes, shapes and sizes are checked against the model's manifest and against the
bytes that came, before anything is allocated by a number that a caller sent. Typed contents become raw at once, so
that all behind this module is raw. Answers are always raw, as Triton's are. Rules: docs/protocol.md (Triton's
src/grpc/infer_handler.cc is their origin where the Open Inference Protocol is silent).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from google.protobuf.message import DecodeError

from penstock.errors import InvalidArgument, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.tensors import Buffer, datatype, element_count, pack_bytes, unpack_bytes
from penstock.v1 import manifest_pb2 as pb
from penstock.wire.call import Payload
from penstock.wire.stream import varint

from .metadata import full_shape
from .references import COPIED, Destination, Lent, Source

_INT64_MAX: Final = (1 << 63) - 1

# Typed lists to packed elements; array() refuses a number that does not fit, which is the range check.
_ARRAY_CODES: Final = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_MAX_ANSWERS: Final = 256
_SHARED_MEMORY: Final = "shared_memory_region"
_ALLOWED_TRITON: Final = frozenset({"triton_enable_empty_final_response", "triton_final_response"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor in raw form. shape: with the batch dimension in front where the model has one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer


@dataclass(frozen=True, slots=True)
class Referred:
    """An input that lies in shared memory until it is staged; as Tensor in all else."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Source


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request.

    rows: its share of a batch, 1 for a model without batch dimension; kind: equal for requests that may share a batch;
    inputs: in the manifest's order; outputs: names to answer, in order; timeout: seconds in the queue, None for none;
    sources: inputs that lie in shared memory; destinations: outputs that go there, by name, None for none.
    """

    id: str
    rows: int
    kind: Hashable
    inputs: tuple[Tensor | Referred, ...]
    outputs: tuple[str, ...]
    priority: int = 0
    timeout: float | None = None
    sources: tuple[Source, ...] = ()
    destinations: Mapping[str, Destination] | None = None


class Plan:
    """What was found of a request whose tensors are raw: all of it holds for the next one with the same head."""

    __slots__ = ("_inputs", "_request", "tensors")

    def __init__(self, request: Request, positions: Sequence[int]) -> None:
        """request: as it was decoded; its tensors are not kept. positions: of each input's raw contents among those of
        the message."""
        inputs = tuple(Tensor(tensor.name, tensor.datatype, tensor.shape, b"") for tensor in request.inputs)
        self._request = replace(request, inputs=inputs)
        self.tensors = len(positions)
        self._inputs = [
            (position, tensor, element_count(tensor.shape), datatype(tensor.datatype).size)
            for position, tensor in zip(positions, inputs, strict=True)
        ]

    def fill(self, request_id: str, raws: Sequence[Buffer]) -> Request:
        """The request with these contents, of which there must be as many as `tensors`; raises InvalidArgument when one
        of them does not fit."""
        inputs = tuple(
            [
                Tensor(tensor.name, tensor.datatype, tensor.shape, _checked_raw(tensor, count, width, raws, position))
                for position, tensor, count, width in self._inputs
            ]
        )
        same = self._request
        return Request(
            request_id, same.rows, same.kind, inputs, same.outputs, same.priority, same.timeout
        )  # fmt: skip


class Schema:
    """What one version of a model takes and gives, prepared for checking requests."""

    def __init__(self, name: str, version: int, manifest: pb.Manifest) -> None:
        self.name = name
        self.version = version
        self.batched = manifest.batching.max_batch_size > 0
        self._inputs = {spec.name: (spec.datatype, tuple(full_shape(manifest, spec))) for spec in manifest.inputs}
        self.outputs = tuple(spec.name for spec in manifest.outputs)
        self._answers: dict[Hashable, tuple[bytes, bytes]] = {}

    def decode(self, message: oip.ModelInferRequest, lent: Lent | None = None) -> Request:
        """The request as the batcher takes it. lent: what it refers to in shared memory, None where nothing.

        Raises InvalidArgument with the field and what the model takes, Unsupported for extensions that this server
        does not advertise.
        """
        priority, timeout = _parameters(message.parameters)
        given = self._inputs_of(message, lent.sources if lent is not None else {})
        inputs = tuple(given[name] for name in self._inputs)
        rows = self._rows(inputs)
        skip = 1 if self.batched else 0
        kind = tuple((tensor.datatype, tensor.shape[skip:]) for tensor in inputs)
        outputs = self._outputs_of(message, refused=lent is None)
        if lent is None:
            return Request(message.id, rows, kind, inputs, outputs, priority, timeout)
        sources = tuple(tensor.data for tensor in inputs if isinstance(tensor, Referred))
        return Request(message.id, rows, kind, inputs, outputs, priority, timeout, sources, lent.destinations)

    def plan(self, message: oip.ModelInferRequest, request: Request) -> Plan | None:
        """What can be kept of a request that was decoded from this message; None when its contents are not raw."""
        if not message.raw_input_contents:
            return None
        places = {tensor.name: position for position, tensor in enumerate(message.inputs)}
        return Plan(request, [places[tensor.name] for tensor in request.inputs])

    def encode(self, request_id: str, outputs: Sequence[Tensor]) -> bytes:
        """A serialised ModelInferResponse with raw contents. What stands around id and contents is the same for all
        answers of these shapes, so it is kept."""
        key = tuple([(each.name, each.shape) for each in outputs])
        around = self._answers.get(key) or self._around(key, outputs)
        parts: list[Buffer] = [around[0]]
        if request_id:
            coded = request_id.encode()
            parts += (b"\x1a", varint(len(coded)), coded)
        parts.append(around[1])
        for each in outputs:
            parts += (b"\x32", varint(len(each.data)), each.data)
        return b"".join(parts)

    def _around(self, key: Hashable, outputs: Sequence[Tensor]) -> tuple[bytes, bytes]:
        """What stands before the id of an answer, and what between id and contents."""
        kind = oip.ModelInferResponse
        tensors = [kind.InferOutputTensor(name=each.name, datatype=each.datatype, shape=each.shape) for each in outputs]
        around = (
            kind(model_name=self.name, model_version=str(self.version)).SerializeToString(),
            kind(outputs=tensors).SerializeToString(),
        )
        if len(self._answers) >= _MAX_ANSWERS:
            self._answers.clear()
        self._answers[key] = around
        return around

    def _inputs_of(self, message: oip.ModelInferRequest, sources: Mapping[str, Source]) -> dict[str, Tensor | Referred]:
        raw, taken = message.raw_input_contents, 0
        given: dict[str, Tensor | Referred] = {}
        for position, tensor in enumerate(message.inputs):
            where = f"inputs[{position}]"
            if tensor.name in given:
                raise InvalidArgument(f"{where}: input {_shown(tensor.name)} comes twice", field=f"{where}.name")
            source = sources.get(tensor.name)
            if source is None and _SHARED_MEMORY in tensor.parameters:
                raise Unsupported("shared memory is not offered here; send the tensor's bytes", field=where)
            shape = self._checked_shape(tensor, where)
            if source is not None:
                given[tensor.name] = _referred(tensor, shape, source, where)
                continue
            if raw and tensor.HasField("contents"):
                raise InvalidArgument(
                    f"{where}: contents and raw_input_contents must not come together", field=f"{where}.contents"
                )
            if raw and taken >= len(raw):
                raise InvalidArgument(f"unable to find data for input tensor {_shown(tensor.name)}", field=where)
            data: Buffer
            if raw:
                row = datatype(tensor.datatype)
                data = _checked_raw(tensor, element_count(shape), row.size, raw, taken)
                taken += 1
            else:
                data = _from_contents(tensor, where)
            given[tensor.name] = Tensor(tensor.name, tensor.datatype, shape, data)
        if len(raw) > taken:
            raise InvalidArgument(
                f"raw_input_contents: {len(raw)} buffers for {taken} inputs", field="raw_input_contents"
            )
        missing = [name for name in self._inputs if name not in given]
        if missing:
            raise InvalidArgument(
                f"model {self.name!r} needs input {missing[0]!r} ({self._takes(missing[0])}), which the request lacks",
                field="inputs",
            )
        return given

    def _checked_shape(self, tensor: oip.ModelInferRequest.InferInputTensor, where: str) -> tuple[int, ...]:
        """Name, datatype and shape against the manifest."""
        expected = self._inputs.get(tensor.name)
        if expected is None:
            known = "; ".join(f"{name!r}: {self._takes(name)}" for name in self._inputs)
            raise InvalidArgument(
                f"model {self.name!r} has no input {_shown(tensor.name)}; it takes {known}", field=f"{where}.name"
            )
        name, wanted = expected
        if tensor.datatype != name:
            datatype(tensor.datatype, f"{where}.datatype")
            raise InvalidArgument(
                f"input {tensor.name!r} of model {self.name!r} takes {name}, got {tensor.datatype}",
                field=f"{where}.datatype",
            )
        shape = tuple(tensor.shape)
        element_count(shape, f"{where}.shape")
        fits = len(shape) == len(wanted) and all(w in (-1, s) for w, s in zip(wanted, shape, strict=True))
        if not fits:
            batch = " (batch first)" if self.batched else ""
            raise InvalidArgument(
                f"input {tensor.name!r} of model {self.name!r} takes shape {list(wanted)}{batch}, "
                f"got {list(shape[:16])}",
                field=f"{where}.shape",
            )
        return shape

    def _rows(self, inputs: Sequence[Tensor | Referred]) -> int:
        if not self.batched:
            return 1
        rows = {tensor.shape[0] for tensor in inputs}
        if len(rows) != 1:
            sizes = ", ".join(f"{tensor.name!r}: {tensor.shape[0]}" for tensor in inputs)
            raise InvalidArgument(f"all inputs must have the same batch dimension, got {sizes}", field="inputs")
        (count,) = rows
        if count < 1:
            raise InvalidArgument("the batch dimension must be at least 1, got 0", field="inputs[0].shape")
        return count

    def _outputs_of(self, message: oip.ModelInferRequest, *, refused: bool) -> tuple[str, ...]:
        """Names to answer: those that were asked for, or all. refused: none may go to shared memory."""
        if not message.outputs:
            return self.outputs
        names: dict[str, None] = {}
        for position, wanted in enumerate(message.outputs):
            where = f"outputs[{position}]"
            if wanted.name not in self.outputs:
                raise InvalidArgument(
                    f"model {self.name!r} has no output {_shown(wanted.name)}; it gives {', '.join(self.outputs)}",
                    field=f"{where}.name",
                )
            if "classification" in wanted.parameters:
                raise Unsupported(
                    "the classification extension is not offered; publish the model with a top_k processor instead",
                    field=f"{where}.parameters.classification",
                )
            if refused and _SHARED_MEMORY in wanted.parameters:
                raise Unsupported("shared memory is not offered here; take the tensor's bytes", field=where)
            names[wanted.name] = None
        return tuple(names)

    def _takes(self, name: str) -> str:
        kind, shape = self._inputs[name]
        return f"{kind} {list(shape)}"


def parse(payload: Payload) -> oip.ModelInferRequest:
    """The message in the bytes; raises InvalidArgument when there is none."""
    try:
        return oip.ModelInferRequest.FromString(payload)
    except DecodeError:
        raise InvalidArgument("the request is not a ModelInferRequest message") from None


def _checked_raw(
    tensor: oip.ModelInferRequest.InferInputTensor | Tensor | Referred,
    count: int,
    width: int,
    raws: Sequence[Buffer],
    position: int,
) -> Buffer:
    """The tensor's raw contents, whose size is what datatype and shape say. count: of elements; width: bytes of one,
    0 for BYTES."""
    data = raws[position]
    if width:
        if len(data) == count * width and (tensor.datatype != "BOOL" or not bytes(data).translate(None, b"\x00\x01")):
            return data
        where = f"raw_input_contents[{position}]"
        if len(data) == count * width:
            raise InvalidArgument(f"{where}: a BOOL is a byte of 0 or 1", field=where)
        raise InvalidArgument(
            f"{where}: {len(data)} bytes for input {tensor.name!r}; "
            f"{tensor.datatype} {list(tensor.shape)} takes {count * width}",
            field=where,
        )
    unpack_bytes(data, count, f"raw_input_contents[{position}]")
    return data


def _referred(
    tensor: oip.ModelInferRequest.InferInputTensor, shape: tuple[int, ...], source: Source, where: str
) -> Tensor | Referred:
    """An input in shared memory whose size is what datatype and shape say; a copy where it must be looked at."""
    if tensor.HasField("contents"):
        raise InvalidArgument(f"{where}: contents and shared memory must not come together", field=f"{where}.contents")
    row, count = datatype(tensor.datatype), element_count(shape)
    if row.size and len(source) != count * row.size:
        raise InvalidArgument(
            f"{where}: {len(source)} bytes for input {tensor.name!r}; "
            f"{row.name} {list(shape)} takes {count * row.size}",
            field=where,
        )
    if row.name not in COPIED:
        return Referred(tensor.name, row.name, shape, source)
    data = source.copy()
    if row.name == "BYTES":
        unpack_bytes(data, count, where)
    elif data.translate(None, b"\x00\x01"):
        raise InvalidArgument(f"{where}: a BOOL is a byte of 0 or 1", field=where)
    return Tensor(tensor.name, row.name, shape, data)


def _from_contents(tensor: oip.ModelInferRequest.InferInputTensor, where: str) -> bytes:
    """Typed contents in raw form."""
    row, count = datatype(tensor.datatype), element_count(tensor.shape)
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    where = f"{where}.contents"
    if not fields:
        if count == 0:
            return b""
        raise InvalidArgument(f"unable to find data for input tensor {tensor.name!r}", field=where)
    if not row.field:
        raise InvalidArgument(f"{where}: {row.name} has no typed form; send it in raw_input_contents", field=where)
    if fields != [row.field]:
        raise InvalidArgument(
            f"{where}: {row.name} of input {tensor.name!r} goes into {row.field} alone, got {', '.join(fields)}",
            field=where,
        )
    values = getattr(tensor.contents, row.field)
    if len(values) != count:
        raise InvalidArgument(
            f"{where}: {len(values)} elements for input {tensor.name!r}, shape {list(tensor.shape)} takes {count}",
            field=where,
        )
    if row.name == "BYTES":
        return pack_bytes(values)
    if row.name == "BOOL":
        return bytes(values)
    try:
        packed = array(_ARRAY_CODES[row.name], values)
    except OverflowError:
        raise InvalidArgument(f"{where}: a number does not fit {row.name}", field=where) from None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _parameters(parameters: Mapping[str, oip.InferParameter]) -> tuple[int, float | None]:
    """Priority and queue timeout (seconds) of a request; parameters that are nobody's are let through unused."""
    for name, value in parameters.items():
        if name in ("sequence_id", "sequence_start", "sequence_end") and _content(value):
            raise Unsupported("sequences of requests are not offered here", field=f"parameters.{name}")
        if name.startswith("triton_") and name not in _ALLOWED_TRITON:
            raise InvalidArgument(
                f"parameters: names that begin with 'triton_' are reserved, got {_shown(name)}", field="parameters"
            )
    timeout = _whole(parameters, "timeout")
    return _whole(parameters, "priority"), timeout / 1e6 if timeout else None


def _whole(parameters: Mapping[str, oip.InferParameter], name: str) -> int:
    if name not in parameters:
        return 0
    value = _content(parameters[name])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _INT64_MAX:
        raise InvalidArgument(f"parameters.{name}: expected a non-negative integer", field=f"parameters.{name}")
    return value


def _content(value: oip.InferParameter) -> object:
    chosen = value.WhichOneof("parameter_choice")
    return getattr(value, chosen) if chosen else None


def _shown(text: str) -> str:
    """Quoted and cut: it comes from a caller."""
    return repr(text[:80] + ("…" if len(text) > 80 else ""))
