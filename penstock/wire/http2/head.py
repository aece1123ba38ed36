"""The head of a request, read once per header block: which method, how long, which headers, or why not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from penstock import errors
from penstock.wire.call import REQUEST_ID, Call, Direct, Handler

from .hpack import Field
from .messages import read_timeout

Write = Callable[[bytes], Awaitable[None]]
StreamHandler = Callable[[Call, AsyncIterator[bytes], Write], Awaitable[Mapping[str, str] | None]]
"""Answers a streaming call: reads the iterator, awaits `write` for each message, returns trailers. The call's payload
is empty, its deadline infinite where the caller gave none. Raises PenstockError."""

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOP_BY_HOP: Final = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"))
_PSEUDO: Final = frozenset((":method", ":scheme", ":authority", ":path"))
_KNOWN: Final = frozenset(
    ("te", "content-type", "user-agent", "grpc-timeout", "grpc-accept-encoding", "accept-encoding")
)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass(frozen=True, slots=True)
class Method:
    """What a path leads to. Exactly one of unary and stream is set.

    name: as the handler gets it; direct: asked before the unary handler; open: needs no authentication;
    default_timeout: for unary calls without a deadline.
    """

    name: str
    unary: Handler | None = None
    direct: Direct | None = None
    stream: StreamHandler | None = None
    open: bool = False
    default_timeout: float = 60.0


@dataclass(slots=True)
class Head:
    """method: None when the path leads nowhere; timeout: seconds, None without; request_id: empty when not well-formed;
    http: status of the answer to what is not gRPC, else 0; length: content-length, -1 without; cost: bytes of
    its names and values; refusal: why it is not served, whoever calls."""

    method: Method | None
    path: str
    timeout: float | None
    headers: dict[str, str]
    request_id: str
    http: int = 0
    length: int = -1
    cost: int = 0
    refusal: errors.PenstockError | None = None


class Malformed(ValueError):
    """Not a request of HTTP/2: the stream is reset."""


def well_formed(request_id: str) -> bool:
    """A request id that may stand in logs."""
    return _REQUEST_ID.fullmatch(request_id) is not None


def read_head(fields: list[Field], methods: Mapping[str, Method]) -> Head:
    """Raises Malformed."""
    headers: dict[str, str] = {}
    pseudo: dict[str, str] = {}
    foreign = False
    for name, value in fields:
        if name[:1] == ":":
            if headers or name in pseudo or name not in _PSEUDO:
                raise Malformed("pseudo-headers are wrong, double or late")
            if _FORBIDDEN.search(value):
                raise Malformed("a pseudo-header's value that HTTP/2 does not allow")
            pseudo[name] = value
            continue
        if name not in _KNOWN and (not _NAME.fullmatch(name) or name in _HOP_BY_HOP):
            raise Malformed("a header name that HTTP/2 does not allow")
        # RFC 9113 (8.2.1) calls a value with space around it malformed; gRPC clients send it, and it harms nobody.
        value = value.strip(" \t")
        if not (value.isascii() and value.isprintable()):
            if _FORBIDDEN.search(value):
                raise Malformed("a header value that HTTP/2 does not allow")
            foreign = True
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    path = pseudo.get(":path", "")
    if ":method" not in pseudo or ":scheme" not in pseudo or not path:
        raise Malformed("a request needs :method, :scheme and :path")
    if headers.get("te", "trailers") != "trailers":
        raise Malformed("te may only be trailers")
    length = headers.get("content-length", "-1")
    if length != "-1" and not (length.isascii() and length.isdigit() and len(length) < 16):
        raise Malformed("content-length is not a number")
    given = headers.get(REQUEST_ID, "")
    head = Head(methods.get(path), path, None, headers, given if well_formed(given) else "")
    head.length = int(length)
    head.cost = sum(map(len, headers)) + sum(map(len, headers.values())) + len(path)
    kind = headers.get("content-type", "")
    if pseudo[":method"] != "POST":
        head.http = 405
    elif kind != "application/grpc" and not kind.startswith(("application/grpc+", "application/grpc;")):
        head.http = 415
    elif foreign:
        head.refusal = errors.InvalidArgument("metadata is ASCII, or base64 under a name that ends in -bin")
    elif "grpc-timeout" in headers:
        try:
            head.timeout = read_timeout(headers["grpc-timeout"])
        except errors.InvalidArgument as refusal:
            head.refusal = refusal
    return head


def may_end(fields: list[Field]) -> bool:
    """The fields could be the trailers of a request (RFC 9113, 8.1)."""
    return all(
        _NAME.fullmatch(name) and name not in _HOP_BY_HOP and not _FORBIDDEN.search(value) for name, value in fields
    )
