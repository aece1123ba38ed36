"""The heads of requests on one connection, read again only where they differ from earlier ones.

A header block that came before means the same again, as long as the dynamic table is unchanged. Where a block begins as
another did, and only the headers that vary from call to call follow (deadline, request id, trace), only those are read.
And where a client puts even its deadlines into the table, as gRPC's own does, so that no two blocks are alike, the
decoded headers that do not vary are looked up as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from penstock.errors import PenstockError
from penstock.wire.call import REQUEST_ID, TRACEPARENT

from .head import Head, Method, read_head, well_formed
from .hpack import Decoder, Field
from .limits import Limits
from .messages import read_timeout

_MAX_WHOLE: Final = 128
_MAX_STARTS: Final = 64
_KEPT_BYTES: Final = 1024
"""Of a block and its head: together with the two numbers before, what a connection may make us keep."""
_VARYING: Final = frozenset(("grpc-timeout", REQUEST_ID, TRACEPARENT))
_NAMES: Final = {name.encode(): name for name in _VARYING}
K = TypeVar("K")


class Heads:
    """Reads header blocks of requests. Every block of the connection has to come through `read` or `decoder`."""

    def __init__(self, methods: Mapping[str, Method], limits: Limits) -> None:
        self.decoder = Decoder(max_list=limits.max_header_list, max_fields=limits.max_header_fields)
        self._methods = methods
        self._version = 0
        self._whole: dict[bytes, Head] = {}
        self._starts: dict[bytes, Head] = {}
        self._sizes: tuple[int, ...] = ()
        self._constants: dict[tuple[Field, ...], Head] = {}

    def read(self, block: bytes) -> Head:
        """Raises Malformed, and what Decoder.decode raises."""
        if self._version != self.decoder.version:
            self._forget()
        head = self._whole.get(block)
        if head is not None:
            return head
        for size in self._sizes:
            start = self._starts.get(block[:size])
            if start is not None and (head := _continued(start, block, size)) is not None:
                return head
        return self._anew(block)

    def _anew(self, block: bytes) -> Head:
        ends: list[int] = []
        fields = self.decoder.decode(block, ends)
        constant = tuple([field for field in fields if field[0] not in _VARYING])
        start = self._constants.get(constant)
        head = (
            _varied(start, [field for field in fields if field[0] in _VARYING])
            if start is not None and _in_order(fields)
            else None
        )
        if head is None:
            head = read_head(fields, self._methods)
            if head.cost <= _KEPT_BYTES:
                self._keep(self._constants, constant, constant)
        if self.decoder.version != self._version:
            # It has changed the table: the same bytes would mean something else now.
            self._forget()
        elif len(block) + head.cost <= _KEPT_BYTES:
            count = len(constant)
            if 0 < count < len(fields) and tuple(fields[:count]) == constant:
                self._keep(self._starts, block[: ends[count - 1]], constant)
                self._sizes = tuple({len(known) for known in self._starts})
            if len(self._whole) >= _MAX_WHOLE:
                self._whole.clear()
            self._whole[block] = head
        return head

    def _keep(self, kept: dict[K, Head], key: K, fields: tuple[Field, ...]) -> None:
        """Remembers the head that consists of these fields alone."""
        head = read_head(list(fields), self._methods)
        # A call that is passed on needs all of its headers; a refused one is not worth an effort.
        if head.method is None or head.method.unary is None or head.http or head.refusal is not None:
            return
        if len(kept) >= _MAX_STARTS:
            kept.clear()
        kept[key] = head

    def _forget(self) -> None:
        self._version = self.decoder.version
        self._whole.clear()
        self._starts.clear()
        self._sizes = ()


def _in_order(fields: list[Field]) -> bool:
    """No varying field stands before a pseudo-header, which would be malformed."""
    varying = False
    for name, _ in fields:
        if name in _VARYING:
            varying = True
        elif varying and name[:1] == ":":
            return False
    return True


def _continued(start: Head, block: bytes, at: int) -> Head | None:
    """The head whose constant part is `start` and whose rest begins at `at`; None when that holds anything unusual."""
    rest: list[Field] = []
    try:
        while at < len(block):
            # A literal that is not indexed, with a name of its own (RFC 7541, 6.2.2), both short and plain.
            if block[at]:
                return None
            size = block[at + 1]
            name = _NAMES.get(block[at + 2 : at + 2 + size])
            at += 2 + size
            size = block[at]
            value = block[at + 1 : at + 1 + size]
            at += 1 + size
            if name is None or size >= 0x7F or len(value) != size:
                return None
            rest.append((name, str(value, "ascii")))
    except (IndexError, UnicodeDecodeError):
        return None
    return _varied(start, rest)


def _varied(start: Head, fields: list[Field]) -> Head | None:
    """The head with these varying fields beside the constant ones; None when a full reading has to judge them."""
    timeout, request_id, headers = None, "", start.headers
    for name, value in fields:
        if name == "grpc-timeout" and timeout is None:
            try:
                timeout = read_timeout(value)
            except PenstockError:
                return None
        elif name == REQUEST_ID and not request_id and well_formed(value):
            request_id = value
        elif name == TRACEPARENT and headers is start.headers and value.isascii() and value.isprintable():
            headers = {**headers, TRACEPARENT: value.strip(" ")}
        else:
            return None
    return Head(start.method, start.path, timeout, headers, request_id, length=start.length, cost=start.cost)
