"""Parsing what a caller sent, where the gateway must read a whole message."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from penstock.errors import InvalidArgument

M = TypeVar("M", bound=Message)


def parsed(message_class: type[M], payload: bytes) -> M:
    """The message; raises InvalidArgument when the bytes are not one."""
    try:
        return message_class.FromString(payload)
    except DecodeError:
        raise InvalidArgument("the request is not a valid protobuf message") from None
