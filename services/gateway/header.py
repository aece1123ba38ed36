"""The routing header of a request, read from its bytes without parsing the message.

A bounded scan of the protobuf wire format (https://protobuf.dev/programming-guides/encoding/): text fields 1, 2 and 3
are taken, everything else is skipped by its length, so tensors are never touched and no copy is made of them.

The whole message is walked, not only its head: a later field 1 wins over an earlier one, as in every protobuf parser,
so the gateway and the worker can never disagree about which model a request names. A skip costs well under a
microsecond and a request has a handful of top-level fields; MAX_FIELDS bounds what a hostile one can cost.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.errors import InvalidArgument
from penstock.wire.call import Payload

MAX_FIELDS = 16_384
"""Top-level fields of one request. A real one has a few per tensor; a 64 MiB message could hold 30 million."""

_NAME, _VERSION, _ID = 0x0A, 0x12, 0x1A  # tags of fields 1, 2 and 3, length-delimited
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class RoutingHeader(NamedTuple):
    """model: name as sent; version: number, alias or empty; id: the caller's own, to be echoed by the worker."""

    model: str
    version: str
    id: str = ""


def of_infer(payload: Payload) -> RoutingHeader:
    """Header of a serialised ModelInferRequest (model_name=1, model_version=2, id=3).

    Raises InvalidArgument when the bytes are not a protobuf message, or one with groups or too many fields.
    """
    name, version, id_ = _scan(payload, wants_id=True)
    return RoutingHeader(_text(name, "model_name"), _text(version, "model_version"), _text(id_, "id"))


def of_model_request(payload: Payload) -> RoutingHeader:
    """Header of a ModelReady, ModelMetadata, ModelConfig or ModelStatistics request (name=1, version=2)."""
    name, version, _ = _scan(payload, wants_id=False)
    return RoutingHeader(_text(name, "name"), _text(version, "version"))


def _scan(payload: Payload, *, wants_id: bool) -> tuple[Payload, Payload, Payload]:
    """Last value of fields 1, 2 and 3; a known number with another wire type is an unknown field and is skipped."""
    name: Payload = b""
    version: Payload = b""
    id_: Payload = b""
    position, end = 0, len(payload)
    for _ in range(MAX_FIELDS):
        if position >= end:
            return name, version, id_
        tag = payload[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(payload, position - 1, end, 5)
        if tag & 7 == _LENGTH:
            if position >= end:
                raise _malformed()
            length = payload[position]
            position += 1
            if length >= 0x80:
                length, position = _varint(payload, position - 1, end, 10)
            begin, position = position, position + length
            if position > end:
                raise _malformed()
            if tag == _NAME:
                name = payload[begin:position]
            elif tag == _VERSION:
                version = payload[begin:position]
            elif tag == _ID and wants_id:
                id_ = payload[begin:position]
        else:
            position = _skip_scalar(payload, tag & 7, position, end)
        if not 8 <= tag <= 0xFFFFFFFF:
            raise _malformed()  # field number 0, or beyond 2**29 - 1
    if position >= end:
        return name, version, id_
    raise InvalidArgument(f"the request has more than {MAX_FIELDS} top-level fields")


def _skip_scalar(payload: Payload, wire_type: int, position: int, end: int) -> int:
    if wire_type == _VARINT:
        _, position = _varint(payload, position, end, 10)
    elif wire_type == _FIXED64:
        position += 8
    elif wire_type == _FIXED32:
        position += 4
    else:
        raise _malformed()  # groups nest without a length, and no message of the protocol has one
    if position > end:
        raise _malformed()
    return position


def _varint(payload: Payload, position: int, end: int, longest: int) -> tuple[int, int]:
    """The number at that position and where it ends."""
    value = shift = 0
    for index in range(position, min(position + longest, end)):
        byte = payload[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise _malformed()


def _text(raw: Payload, field: str) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise InvalidArgument(f"{field} is not valid UTF-8", field=field) from None


def _malformed() -> InvalidArgument:
    return InvalidArgument("the request is not a valid protobuf message")
