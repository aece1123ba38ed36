"""The binary tensor extension: a JSON header, then the bytes of tensors in the order of the JSON. Pure.

Source of the rules: Triton's extension_binary_data.md. `Inference-Header-Content-Length` is the size of the header
within the decompressed body; 0 means that the whole body is the one input of the model.
"""

from __future__ import annotations

from typing import Final

from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip
from penstock.tensors import DATATYPES, Buffer, pack_bytes

HEADER: Final = "inference-header-content-length"

_BY_NUMBER: Final = {
    number: "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")
    for name, number in oip.DataType.items()
    if number != oip.TYPE_INVALID
}


def header_length(text: str | None) -> int | None:
    """Value of the header, None where there is none; raises InvalidArgument for what is no size."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise InvalidArgument(
            "Inference-Header-Content-Length: must be the size of the JSON part in bytes", field=HEADER
        )
    return int(text)


def split(body: Buffer, length: int | None) -> tuple[bytes, Tail]:
    """JSON part and binary part of a body; without the header everything is JSON."""
    if length is None:
        return bytes(body), Tail(memoryview(b""))
    if length > len(body):
        message = f"Inference-Header-Content-Length: {length} is more than the {len(body)} bytes of the body"
        raise InvalidArgument(message, field=HEADER)
    view = memoryview(body)
    return bytes(view[:length]), Tail(view[length:])


class Tail:
    """The binary part, taken from the front. view: all of it."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self._offset = 0

    def take(self, size: object, field: str) -> bytes:
        """The next `size` bytes; raises InvalidArgument when `size` is no size or the part is shorter."""
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidArgument(f"{field}: must be a size in bytes", field=field)
        left = len(self.view) - self._offset
        if size > left:
            raise InvalidArgument(f"{field}: {size} bytes asked for, {left} left in the binary part", field=field)
        taken = bytes(self.view[self._offset : self._offset + size])
        self._offset += size
        return taken

    def finish(self) -> None:
        """Raises InvalidArgument when bytes are left over."""
        left = len(self.view) - self._offset
        if left:
            raise InvalidArgument(f"{left} bytes after the last tensor; the binary part must hold the tensors only")


def raw_request(config: oip.ModelConfig, body: Buffer) -> oip.ModelInferRequest:
    """The request whose whole body is the model's one input, batch 1.

    config: of the model; at most one dimension may be variable and follows from the size of the body; a BYTES input
    must be of one element, which is the body. Raises InvalidArgument when the model does not allow it or the size
    does not fit. Model name and version are left to the caller.
    """
    if len(config.input) != 1:
        message = f"a raw binary request needs a model with one input; {config.name} has {len(config.input)}"
        raise InvalidArgument(message, field=HEADER)
    spec = config.input[0]
    name = _BY_NUMBER.get(spec.data_type, "")
    dims = list(spec.dims)
    if name == "BYTES":
        if any(dimension not in (1, -1) for dimension in dims) or not dims:
            raise InvalidArgument("a raw binary request can carry a BYTES input of shape [1] only", field=HEADER)
        data, dims = pack_bytes([bytes(body)]), [1] * len(dims)
    else:
        data, dims = bytes(body), _fill(dims, len(body), DATATYPES[name].size, spec.name)
    request = oip.ModelInferRequest(raw_input_contents=[data])
    shape = [1, *dims] if config.max_batch_size > 0 else dims
    request.inputs.add(name=spec.name, datatype=name, shape=shape)
    return request


def _fill(dims: list[int], size: int, item: int, name: str) -> list[int]:
    variable = [axis for axis, dimension in enumerate(dims) if dimension < 0]
    if len(variable) > 1:
        raise InvalidArgument(f"a raw binary request cannot fill the {len(variable)} variable dimensions of {name}")
    known = item
    for dimension in dims:
        known *= dimension if dimension >= 0 else 1
    if not variable:
        if size != known:
            raise InvalidArgument(f"input {name} takes {known} bytes, the body has {size}")
        return dims
    if known == 0 or size % known:
        raise InvalidArgument(f"input {name} takes a multiple of {known} bytes, the body has {size}")
    dims[variable[0]] = size // known
    return dims
