"""Heads: what they say, and which of them are refused because they could be read in two ways."""

from __future__ import annotations

import pytest

from services.gateway.rest.head import BadRequest, Head, Heads, Query
from services.gateway.rest.routing import Router


def read(*lines: bytes) -> Head:
    return Heads(Router([])).read(b"".join(line + b"\r\n" for line in (*lines, b"")))


def test_a_head() -> None:
    head = read(
        b"POST /v2/models/a%20b/infer?q=1 HTTP/1.1",
        b"Host: h",
        b"Content-Length:  17 ",
        b"X-Request-Id: abc",
        b"x-request-id: other",
    )
    assert (head.method, head.path, head.query) == ("POST", "/v2/models/a b/infer", "q=1")
    assert (head.length, head.chunked, head.keep_alive, head.old) == (17, False, True, False)
    assert head.headers["x-request-id"] == head.request_id == "abc"


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        ((b"GET / HTTP/1.1", b"host: h"), True),
        ((b"GET / HTTP/1.1", b"host: h", b"connection: close"), False),
        ((b"GET / HTTP/1.1", b"host: h", b"connection: Keep-Alive, Close"), False),
        ((b"GET / HTTP/1.0",), False),
        ((b"GET / HTTP/1.0", b"connection: keep-alive"), True),
        ((b"CONNECT h:1 HTTP/1.1", b"host: h"), False),
        ((b"GET / HTTP/1.1", b"host: h", b"connection: upgrade", b"upgrade: h2c"), True),
    ],
)
def test_whether_more_may_follow(lines: tuple[bytes, ...], keeps: bool) -> None:
    assert read(*lines).keep_alive is keeps


POST = b"POST / HTTP/1.1"
BAD: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "length and coding": (400, (POST, b"host: h", b"content-length: 4", b"transfer-encoding: chunked")),
    "coding and length": (400, (POST, b"host: h", b"transfer-encoding: chunked", b"content-length: 4")),
    "two lengths that agree": (400, (POST, b"host: h", b"content-length: 4", b"content-length: 4")),
    "a list of lengths": (400, (POST, b"host: h", b"content-length: 4, 4")),
    "a signed length": (400, (POST, b"host: h", b"content-length: +4")),
    "a hexadecimal length": (400, (POST, b"host: h", b"content-length: 0x4")),
    "an empty length": (400, (POST, b"host: h", b"content-length: ")),
    "a length beyond all bounds": (400, (POST, b"host: h", b"content-length: 9999999999999999999")),
    "two codings": (400, (POST, b"host: h", b"transfer-encoding: gzip, chunked")),
    "a coding twice": (400, (POST, b"host: h", b"transfer-encoding: chunked", b"transfer-encoding: chunked")),
    "another coding": (400, (POST, b"host: h", b"transfer-encoding: identity")),
    "a coding in HTTP/1.0": (400, (b"POST / HTTP/1.0", b"transfer-encoding: chunked")),
    "a coding with something before it": (400, (POST, b"host: h", b"transfer-encoding: \x0bchunked")),
    "a space before the colon": (400, (POST, b"host: h", b"content-length : 4")),
    "a folded line": (400, (POST, b"host: h", b"x: a", b" content-length: 4")),
    "a bare line feed": (400, (POST, b"host: h\nx: y")),
    "a head within a head": (400, (POST, b"host: h\n\nGET /other HTTP/1.1")),
    "a bare carriage return": (400, (POST, b"host: h\rx: y")),
    "a null byte": (400, (POST, b"host: h", b"x: a\0b")),
    "no host": (400, (b"GET / HTTP/1.1",)),
    "two hosts": (400, (b"GET / HTTP/1.1", b"host: a", b"host: b")),
    "a path that is not UTF-8": (400, (b"GET /%ff HTTP/1.1", b"host: h")),
    "a space in the path": (400, (b"GET /a b HTTP/1.1", b"host: h")),
    "an unknown method": (400, (b"FETCH / HTTP/1.1", b"host: h")),
    "HTTP/2": (505, (b"GET / HTTP/2.0", b"host: h")),
    "HTTP/0.9": (505, (b"GET / HTTP/0.9", b"host: h")),
    "no version": (400, (b"GET /",)),
    "another protocol": (400, (b"GET / RTSP/1.0", b"host: h")),
    "too many fields": (431, (b"GET / HTTP/1.1", b"host: h", *[b"x: y"] * 256)),
    "too many bytes": (431, (b"GET / HTTP/1.1", b"host: h", b"x: " + b"y" * 65536)),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    status, lines = BAD[case]
    with pytest.raises(BadRequest) as caught:
        read(*lines)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://other:1/v2/x?a=b", "/v2/x"),
        (b"HTTPS://other", "/"),
        (b"http://other?a=b", "/"),
        (b"/v2#part", "/v2"),
        (b"/a%2Fb%25", "/a/b%"),
        (b"*", "*"),
    ],
)
def test_targets(target: bytes, path: str) -> None:
    method = b"OPTIONS" if target == b"*" else b"GET"
    assert read(method + b" " + target + b" HTTP/1.1", b"host: h").path == path


def test_a_head_is_read_once() -> None:
    heads = Heads(Router([]))
    block = b"GET /v2 HTTP/1.1\r\nhost: h\r\n\r\n"
    assert heads.get(block) is None
    assert heads.read(block) is heads.get(block)
    for number in range(2000):
        heads.read(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % number)
    large = b"GET /v2 HTTP/1.1\r\nhost: h\r\nx: %s\r\n\r\n" % (b"y" * 4096)
    heads.read(large)
    assert heads.get(large) is None
    assert len(heads._kept) <= 512


def test_a_query() -> None:
    query = Query("a=1&b=x+y&a=2&c=")
    assert dict(query) == {"a": "2", "b": "x y", "c": ""}
    assert query.getlist("a") == ["1", "2"]
    assert query.getlist("no") == []
