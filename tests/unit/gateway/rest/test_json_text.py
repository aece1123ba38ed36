"""JSON is measured before it is parsed."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidArgument, TooLarge
from services.gateway.rest import json_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=40,
)


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(VALUES, st.booleans())
def test_depth_is_that_of_the_document_whatever_its_strings_hold(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    deepest = depth(value)
    assert json_text.parse(text, max_depth=deepest) == value
    if deepest:
        # Brackets enough that the shortcut by count is not taken.
        padded = b"[" + text + b', "' + b"[" * 200 + b'"]'
        assert json_text.parse(padded, max_depth=deepest + 1) == [value, "[" * 200]
        with pytest.raises(InvalidArgument, match="deeper"):
            json_text.parse(padded, max_depth=deepest)


def test_depth_limit_is_tritons() -> None:
    json_text.parse(b"[" * 100 + b"]" * 100)
    with pytest.raises(InvalidArgument, match="deeper than 100"):
        json_text.parse(b"[" * 101 + b"]" * 101)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_a_depth_bomb_is_refused_quickly(opening: bytes) -> None:
    bomb = opening * 100_000
    started = time.process_time()
    with pytest.raises(InvalidArgument, match="deeper"):
        json_text.parse(bomb)
    assert time.process_time() - started < 0.5


def test_depth_is_carried_across_slices() -> None:
    wide = b"[" * 60 + b"[]," * (1 << 19) + b"[" * 50
    with pytest.raises(InvalidArgument, match="deeper"):
        json_text.parse(wide)


def test_counts_are_bounded() -> None:
    with pytest.raises(TooLarge, match="arrays and objects"):
        json_text.parse(b"[" + b"[]," * json_text.MAX_CONTAINERS + b"[]]")
    with pytest.raises(TooLarge, match="values"):
        json_text.parse(b"[" + b"0," * (json_text.MAX_VALUES + 1) + b"0]")


def test_commas_inside_of_strings_do_not_count() -> None:
    text = b'["' + b"," * (json_text.MAX_VALUES + 1) + b'"]'
    assert json_text.parse(text) == ["," * (json_text.MAX_VALUES + 1)]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"NaN", b"[Infinity]", b"[1e999]", b'"\\ud800"', b"\xef\xbb\xbf{}", b'"\xff"', b"{'a':1}", b"[1,]"],
)
def test_what_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="not valid JSON"):
        json_text.parse(text)


def test_of_duplicate_keys_the_last_counts() -> None:
    assert json_text.parse(b'{"a":1,"a":2}') == {"a": 2}
