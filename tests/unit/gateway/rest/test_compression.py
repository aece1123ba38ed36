"""Bodies inflate under a limit and a ratio."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidArgument, TooLarge
from services.gateway.rest import compression

LIMIT = 8 << 20


def bare(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}


def inflate(encoding: str, body: bytes, limit: int = LIMIT, step: int = 1 << 16) -> bytes:
    inflater = compression.Inflater(encoding, limit)
    into = bytearray()
    for start in range(0, len(body), step):
        inflater.feed(body[start : start + step], into)
    inflater.finish()
    return bytes(into)


@given(st.sampled_from(sorted(CODINGS)), st.binary(max_size=500), st.integers(1, 50))
def test_any_cutting_inflates(encoding: str, data: bytes, step: int) -> None:
    assert inflate(encoding, CODINGS[encoding](data), step=step) == data


@given(st.binary(max_size=500), st.integers(1, 50))
def test_deflate_without_its_wrapper(data: bytes, step: int) -> None:
    assert inflate("deflate", bare(data), step=step) == data


@given(st.sampled_from(["gzip", "deflate"]), st.binary(max_size=2000))
def test_what_we_compress_anybody_inflates(encoding: str, data: bytes) -> None:
    decompress = gzip.decompress if encoding == "gzip" else zlib.decompress
    assert decompress(compression.compress(data, encoding)) == data


def test_the_limit_is_for_what_comes_out() -> None:
    data = os.urandom(10_000)
    assert inflate("gzip", gzip.compress(data), limit=10_000) == data
    with pytest.raises(TooLarge, match="after decompression"):
        inflate("gzip", gzip.compress(data), limit=9_999)


def test_zeros_are_welcome_up_to_a_mebibyte_and_a_bomb_is_not() -> None:
    assert len(inflate("gzip", gzip.compress(bytes(1 << 20)))) == 1 << 20
    with pytest.raises(TooLarge, match="100 times"):
        inflate("gzip", gzip.compress(bytes(6 << 20)))


def test_a_bomb_is_stopped_early() -> None:
    bomb = gzip.compress(bytes(256 << 20), 9)
    inflater = compression.Inflater("gzip", 1 << 30)
    into = bytearray()
    with pytest.raises(TooLarge):
        for start in range(0, len(bomb), 4096):
            inflater.feed(bomb[start : start + 4096], into)
    assert len(into) <= compression.FREE_BYTES + (1 << 18)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_corrupt_or_cut_body(encoding: str) -> None:
    whole = CODINGS[encoding](os.urandom(1000))
    for broken in (whole[:-1], whole[: len(whole) // 2], b"\x1f", b""):
        with pytest.raises(InvalidArgument, match=r"cut short|corrupt"):
            inflate(encoding, broken)
    with pytest.raises(InvalidArgument, match=r"corrupt|cut short"):
        inflate(encoding, b"this is no compressed body at all")
    with pytest.raises(InvalidArgument, match="after the end"):
        inflate(encoding, whole + b"x")


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "identity, gzip", "zstd"])
def test_other_codings_are_refused(encoding: str) -> None:
    with pytest.raises(InvalidArgument, match="Content-Encoding"):
        compression.Inflater(encoding, LIMIT)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("GZIP", "gzip"),
        ("gzip;q=0", None),
        ("*", "gzip"),
        ("*;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("br", None),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=oops", None),
        ("gzip;q=nan", None),
        (",,;;=", None),
    ],
)
def test_accept_encoding(accept: str, chosen: str | None) -> None:
    assert compression.choose(accept) == chosen
