"""Writes that one request can hold: how many are cut into requests, and what is refused before it is sent."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cluster.kv import MAX_OPERATIONS, MAX_REQUEST_BYTES, Delete, Op, Put, batches, check_size, size
from penstock.errors import TooLarge

puts = st.integers(0, 5000).map(lambda length: Put("/penstock/workers/w", bytes(length)))
ops: st.SearchStrategy[Op] = puts | st.just(Delete("/penstock/workers/w"))


@given(st.lists(ops, max_size=250), st.integers(1, 20_000))
def test_batches_hold_everything_in_order_and_never_too_much(operations: list[Op], limit: int) -> None:
    cut = list(batches(operations, limit))
    assert [op for batch in cut for op in batch] == operations
    for batch in cut:
        assert 1 <= len(batch) <= MAX_OPERATIONS
        assert len(batch) == 1 or sum(map(size, batch)) <= limit
    for batch, following in pairwise(cut):
        assert len(batch) == MAX_OPERATIONS or sum(map(size, [*batch, following[0]])) > limit


def test_what_no_request_may_hold_is_refused_with_the_largest_key() -> None:
    check_size([Put("/penstock/a", bytes(MAX_REQUEST_BYTES - 100))])
    with pytest.raises(TooLarge, match=str(MAX_REQUEST_BYTES)) as caught:
        check_size([Put("/penstock/a", bytes(100)), Put("/penstock/b", bytes(MAX_REQUEST_BYTES))])
    assert caught.value.detail == "/penstock/b"
