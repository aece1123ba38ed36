"""Records as they lie in etcd: protobuf messages (protos/penstock/internal/v1/records.proto) as JSON, so that
`etcdctl get` shows something readable. Unknown fields are skipped: a newer process may have written them.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from penstock.errors import Internal

M = TypeVar("M", bound=Message)


def to_json(message: Message) -> bytes:
    """One line of JSON with the names of the proto; equal messages give equal bytes."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None, sort_keys=True).encode()


def from_json(cls: type[M], data: bytes) -> M:
    """The message; raises Internal when the bytes are not one."""
    try:
        if not data.lstrip().startswith(b"{"):  # protobuf takes some other JSON values for an empty message
            raise json_format.ParseError("not a JSON object")
        return json_format.Parse(data.decode(), cls(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise Internal("a stored record cannot be read", detail=f"{cls.__name__}: {error}") from error
