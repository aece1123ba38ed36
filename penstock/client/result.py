"""What an inference answers, as the caller sees it: a mapping of output names to arrays (pure: no network).

An array is made when it is asked for. With NumPy: an ndarray, a read-only view of the answer where memory allows it,
an object array of bytes for BYTES, float32 for BF16. Without NumPy: a memoryview in the output's shape, or nested lists
where a memoryview cannot say it (BYTES, FP16, BF16, an empty tensor).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock import tensors
from penstock.client.payload import STRUCT_FORMATS, Parameter, pack, parameter_value
from penstock.errors import Internal, PenstockError
from penstock.oip import inference_pb2 as oip
from penstock.wire.call import BATCH_SIZE, QUEUE_MICROSECONDS, WORKER


@dataclass(frozen=True, slots=True)
class Trailers:
    """What Penstock says about how a request was served; empty or 0 where a server does not say.

    worker: id of the worker; batch_size: size of the batch that the engine saw; queue_us: microseconds in the queue.
    """

    worker: str = ""
    batch_size: int = 0
    queue_us: int = 0

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Trailers:
        """Reads trailing metadata; what is not a number counts as not said."""
        return cls(
            worker=metadata.get(WORKER, ""),
            batch_size=_number(metadata.get(BATCH_SIZE, "")),
            queue_us=_number(metadata.get(QUEUE_MICROSECONDS, "")),
        )


class InferResult(Mapping[str, Any]):
    """Outputs by name, in the order of the answer.

    model, version, id: as the server answered them; trailers: how it was served; message: the protocol's own message.
    """

    def __init__(self, message: oip.ModelInferResponse, trailers: Trailers | None = None) -> None:
        self.message = message
        self.trailers = trailers or Trailers()
        self._outputs = {output.name: (index, output) for index, output in enumerate(message.outputs)}
        self._raw = self._buffers()
        self._arrays: dict[str, Any] = {}

    @property
    def model(self) -> str:
        """Name of the model that answered."""
        return self.message.model_name

    @property
    def version(self) -> str:
        """Version that answered, as the protocol's text."""
        return self.message.model_version

    @property
    def id(self) -> str:
        """Id of the request, as the caller gave it."""
        return self.message.id

    @property
    def parameters(self) -> dict[str, Parameter | None]:
        """Parameters of the answer."""
        return {name: parameter_value(value) for name, value in self.message.parameters.items()}

    def __getitem__(self, name: str) -> Any:
        if name not in self._arrays:
            _, output = self._outputs[name]
            self._arrays[name] = _decode(output.datatype, tuple(output.shape), self._raw[name])
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {o.datatype} {list(o.shape)}" for name, (_, o) in self._outputs.items())
        return f"<InferResult {self.model}@{self.version} {outputs}>"

    def raw(self, name: str) -> bytes:
        """Raw bytes of an output (penstock.tensors says how they are laid out); raises KeyError."""
        return self._raw[name]

    def datatype(self, name: str) -> str:
        """Datatype of an output; raises KeyError."""
        return self._outputs[name][1].datatype

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an output; raises KeyError."""
        return tuple(self._outputs[name][1].shape)

    def _buffers(self) -> dict[str, bytes]:
        """Raw bytes by output: servers may answer typed contents instead, which are packed here."""
        raw = self.message.raw_output_contents
        if raw and len(raw) != len(self.message.outputs):
            raise Internal(f"the answer has {len(self.message.outputs)} outputs and {len(raw)} raw buffers")
        if raw:
            return {name: raw[index] for name, (index, _) in self._outputs.items()}
        return {name: _packed(output) for name, (_, output) in self._outputs.items()}


@dataclass(frozen=True, slots=True)
class StreamReply:
    """One answer of a stream: a result or an error, and never both.

    id: id of the request it answers; final: no more answers come for that request. An error in a stream carries its
    text only: the protocol has no field for its class.
    """

    id: str
    result: InferResult | None
    error: PenstockError | None
    final: bool = True

    @classmethod
    def read(cls, message: oip.ModelStreamInferResponse) -> StreamReply:
        """Reads one message of ModelStreamInfer."""
        response = message.infer_response
        final = response.parameters["triton_final_response"].bool_param if response.parameters else True
        if message.error_message:
            return cls(response.id, None, PenstockError(message.error_message), final)
        return cls(response.id, InferResult(response), None, final)

    def get(self) -> InferResult:
        """The result; raises the error."""
        if self.result is None:
            raise self.error or Internal("the stream answered nothing")
        return self.result


def nested(datatype: str, shape: Sequence[int], data: bytes) -> Any:
    """The tensor as nested Python lists (a bare value for shape []), made without NumPy.

    Numbers as int, float or bool, BYTES as bytes. Raises InvalidArgument when the data does not fit.
    """
    count = tensors.element_count(shape)
    flat = _unpack(datatype, count, data)
    return _fold(flat, tuple(shape))


def _decode(datatype: str, shape: tuple[int, ...], data: bytes) -> Any:
    try:
        import numpy  # noqa: F401
    except ImportError:
        return _without_numpy(datatype, shape, data)
    return tensors.to_numpy(datatype, shape, data)


def _without_numpy(datatype: str, shape: tuple[int, ...], data: bytes) -> Any:
    count = tensors.element_count(shape)
    if datatype in ("BYTES", "FP16", "BF16") or count == 0 or len(data) != count * tensors.datatype(datatype).size:
        return nested(datatype, shape, data)
    return memoryview(data).cast(STRUCT_FORMATS[datatype], shape)  # type: ignore[call-overload]


def _unpack(datatype: str, count: int, data: bytes) -> list[Any]:
    row = tensors.datatype(datatype)
    if datatype == "BYTES":
        return list(tensors.unpack_bytes(data, count))
    if len(data) != count * row.size:
        raise Internal(f"{len(data)} bytes of data where {datatype} of {count} elements takes {count * row.size}")
    if datatype == "BF16":
        wide = (bits << 16 for bits in struct.unpack(f"<{count}H", data))
        return [struct.unpack("<f", struct.pack("<I", bits))[0] for bits in wide]
    return list(struct.unpack(f"<{count}{STRUCT_FORMATS[datatype]}", data))


def _fold(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = len(flat) // shape[0] if shape[0] else 0
    return [_fold(flat[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


def _packed(output: oip.ModelInferResponse.InferOutputTensor) -> bytes:
    field = tensors.datatype(output.datatype).field
    return pack(output.datatype, list(getattr(output.contents, field))) if field else b""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
