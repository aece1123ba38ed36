"""The head of a request: read by httptools, held against the rules of HTTP/1.1, kept for when it comes again. Pure.

Rules: RFC 9112. What could be read in two ways, so that a proxy before us might see another request than we do, is
refused with 400: both Content-Length and Transfer-Encoding, more than one of either, a coding other than chunked, no or
two Hosts, bare line feeds, folded lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

import httptools

from penstock.wire.call import REQUEST_ID, TRACEPARENT
from penstock.wire.origin import RELAYED

from .operations import Operation
from .routing import Router

MAX_HEAD_BYTES: Final = 64 << 10
MAX_HEAD_FIELDS: Final = 256
TIMEOUT: Final = "penstock-timeout-ms"

_MAX_HEADS: Final = 512
_KEPT_BYTES: Final = 2048
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_ONLY_ONE: Final = ("host", "content-length", "transfer-encoding")


class BadRequest(Exception):
    """What is not, or not any more, a request of HTTP/1.1. status: of the answer, which ends the connection."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Query(Mapping[str, str]):
    """The query string, decoded; of a name that comes twice, the last value counts."""

    def __init__(self, text: str) -> None:
        self._pairs = parse_qsl(text, keep_blank_values=True)
        self._last = dict(self._pairs)

    def __getitem__(self, name: str) -> str:
        return self._last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def getlist(self, name: str) -> list[str]:
        """Every value of that name, in order."""
        return [value for key, value in self._pairs if key == name]


class Head:
    """A request without its body. Many requests share one, so nothing in it may change.

    headers: lower-case names, of those that came twice the first. length: Content-Length, 0 without. keep_alive: more
    requests may follow. old: HTTP/1.0. continues: the caller waits for `100 Continue`. operation: None where the table
    has none for path and method; allowed: the methods of the path, empty where there is no such path. parameters: of
    the path. request_id: the caller's, empty where absent or malformed; forwarded: headers that go on with a call, a
    well-formed traceparent. foreign: it would change something in the name of a visitor of another site's page;
    relayed: a proxy says that it is somebody else's.
    """

    __slots__ = (
        "allowed",
        "chunked",
        "continues",
        "foreign",
        "forwarded",
        "headers",
        "keep_alive",
        "length",
        "method",
        "old",
        "operation",
        "parameters",
        "path",
        "query",
        "relayed",
        "request_id",
    )

    def __init__(self, method: str, target: str, headers: dict[str, str], *, old: bool, keep_alive: bool) -> None:
        self.method, self.headers, self.old = method, headers, old
        self.chunked = "transfer-encoding" in headers
        self.length = int(headers.get("content-length", "0"))
        self.keep_alive = keep_alive and method != "CONNECT"
        self.continues = not old and headers.get("expect", "").lower() == "100-continue"
        path, _, self.query = target.partition("?")
        self.path = _decoded(path)
        self.operation: Operation | None = None
        self.allowed = ""
        self.parameters: Mapping[str, str] = {}
        given, trace = headers.get(REQUEST_ID, ""), headers.get(TRACEPARENT, "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else ""
        self.forwarded: Mapping[str, str] = {TRACEPARENT: trace} if _TRACEPARENT.fullmatch(trace) else {}
        self.relayed = not RELAYED.isdisjoint(headers)
        self.foreign = method not in ("GET", "HEAD") and _foreign(headers)


class Heads:
    """Reads heads. The last few hundred are kept by their bytes: most requests of a connection begin alike."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._kept: dict[bytes, Head] = {}
        self.get = self._kept.get

    def read(self, block: bytes) -> Head:
        """The head that these bytes are, with the empty line at their end; raises BadRequest."""
        if len(block) > MAX_HEAD_BYTES or block.count(b"\r\n") - 2 > MAX_HEAD_FIELDS:
            raise BadRequest(431, f"headers may be {MAX_HEAD_FIELDS} fields and {MAX_HEAD_BYTES} bytes")
        head = _parse(block)
        found = self._router.find(head.path)
        if found is not None:
            methods, head.parameters = found
            head.allowed = ", ".join(sorted(methods))
            head.operation = methods.get(head.method)
        if len(block) <= _KEPT_BYTES:
            if len(self._kept) >= _MAX_HEADS:
                self._kept.clear()
            self._kept[block] = head
        return head


class _Fields:
    """What httptools calls. ends: heads that it has seen the end of; keep_alive: known at that point only."""

    def __init__(self) -> None:
        self.parser: Any = httptools.HttpRequestParser(self)
        self.keep_alive = False
        self.fields: list[tuple[bytes, bytes]] = []
        self.target = b""
        self.ends = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        self.ends += 1
        self.keep_alive = self.parser.should_keep_alive()


def _parse(block: bytes) -> Head:
    seen = _Fields()
    try:
        seen.parser.feed_data(block)
    except httptools.HttpParserUpgrade:
        pass  # an offer that we do not take
    except httptools.HttpParserError:
        raise _invalid() from None
    version = block[: block.find(b"\r\n")].rpartition(b" ")[2]
    if seen.ends != 1 or not version.startswith(b"HTTP/"):
        raise _invalid()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    if not seen.target.isascii():
        raise _invalid()
    old = version == b"HTTP/1.0"
    headers = _checked(seen.fields, old)
    method = seen.parser.get_method().decode("ascii")
    seen.parser = None  # each holds the other
    return Head(method, _origin_form(seen.target), headers, old=old, keep_alive=seen.keep_alive)


def _checked(fields: list[tuple[bytes, bytes]], old: bool) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name = raw_name.decode("latin-1").lower()
        if name not in headers:
            headers[name] = raw_value.decode("latin-1").strip(" \t")
        elif name in _ONLY_ONE:
            raise BadRequest(400, f"{name}: comes twice")
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None:
            raise BadRequest(400, "Content-Length and Transfer-Encoding exclude each other")
        if old or coding.lower() != "chunked":
            raise BadRequest(400, "Transfer-Encoding: must be chunked, in HTTP/1.1, or absent")
    if length is not None and not _LENGTH.fullmatch(length):
        raise BadRequest(400, "Content-Length: must be a number of bytes")
    if "host" not in headers and not old:
        raise BadRequest(400, "Host: missing")
    return headers


def _origin_form(target: bytes) -> str:
    """Path and query (RFC 9112, 3.2). Proxies may be sent the whole URL, and so may we."""
    text = target.decode("ascii")
    if text[:7].lower() == "http://" or text[:8].lower() == "https://":
        _, _, rest = text.partition("://")
        slash = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        rest = rest[slash:]
        text = rest if rest.startswith("/") else f"/{rest}"
    return text.partition("#")[0]


def _decoded(path: str) -> str:
    """Percent-decoded, once; what it names is checked by those who use it."""
    if "%" not in path:
        return path
    try:
        return unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise BadRequest(400, "the path is not UTF-8") from None


def _foreign(headers: Mapping[str, str]) -> bool:
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True


def _invalid() -> BadRequest:
    return BadRequest(400, "this is not a valid HTTP/1.1 request")
