"""What lies in an engine's arenas is exactly the batch, however its rows came there; compared with joining bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.internal.v1 import engine_pb2
from penstock.tensors import DATATYPES, pack_bytes
from services.worker import staging
from services.worker.codec import Referred, Request, Tensor
from services.worker.references import Memory, Source
from services.worker.staging import Staging, worthwhile

CAPACITY = 4


class Arenas:
    """Two sides that grow. A new one is full of another byte than the one before."""

    def __init__(self) -> None:
        self.sides = [bytearray(), bytearray()]
        self.asked: list[tuple[int, int]] = []
        self._filler = count(1)

    def __call__(self, size: int, side: int) -> memoryview:
        self.asked.append((size, side))
        if len(self.sides[side]) < size:
            self.sides[side] = bytearray([next(self._filler) % 256]) * size
        return memoryview(self.sides[side])

    def rows(self, side: int, reference: engine_pb2.TensorRef) -> bytes:
        return bytes(self.sides[side][reference.offset : reference.offset + reference.size_bytes])


def made(arenas: Arenas, *, batched: bool = True) -> Staging:
    return Staging(arenas, capacity=CAPACITY if batched else 1, batched=batched)


def request(*tensors: tuple[str, list[bytes]]) -> Request:
    """A request with these tensors: datatype, and the bytes of each row."""
    inputs = []
    for number, (datatype, rows) in enumerate(tensors):
        width = DATATYPES[datatype].size
        data = b"".join(rows) if width else pack_bytes(rows)
        shape = (len(rows), len(rows[0]) // width if width else 1)
        inputs.append(Tensor(f"t{number}", datatype, shape, data))
    kind = tuple((tensor.datatype, tensor.shape[1:]) for tensor in inputs)
    return Request("id", len(tensors[0][1]), kind, tuple(inputs), ("y",))


@st.composite
def crowds(draw: st.DrawFn) -> list[Request]:
    """Requests of one or two kinds."""
    datatypes = draw(st.lists(st.sampled_from(["UINT8", "FP32", "BYTES"]), min_size=1, max_size=3))
    crowd = []
    for _ in range(draw(st.integers(1, 7))):
        rows, width = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 5]))
        tensors = []
        for datatype in datatypes:
            size = st.integers(0, 90) if datatype == "BYTES" else st.just(DATATYPES[datatype].size * width)
            sizes = [draw(size) for _ in range(rows)]
            tensors.append((datatype, [draw(st.binary(min_size=each, max_size=each)) for each in sizes]))
        crowd.append(request(*tensors))
    return crowd


def batch_of(requests: Sequence[Request]) -> list[Request]:
    """The first and who fits behind it, as the queue would have it."""
    batch, rows = [], 0
    for each in requests:
        rows += each.rows
        if each.kind != requests[0].kind or rows > CAPACITY:
            break
        batch.append(each)
    return batch


def joined(batch: Sequence[Request], index: int) -> bytes:
    """One tensor's rows of a whole batch."""
    parts = [each.inputs[index].data for each in batch]
    return b"".join(part for part in parts if isinstance(part, bytes))


@given(crowds(), st.data())
def test_the_arena_holds_the_batch_and_a_side_in_use_is_left_alone(crowd: list[Request], data: st.DataObject) -> None:
    arenas = Arenas()
    under_test = made(arenas)
    order = st.permutations(crowd).map(batch_of)
    last: tuple[int, list[bytes], list[engine_pb2.TensorRef]] | None = None
    with patch.object(staging, "WORTH_BYTES", 0):
        for _ in range(data.draw(st.integers(1, 6))):
            for step in data.draw(st.lists(st.sampled_from(["ahead", "forget", "drop"]), max_size=4)):
                if step == "ahead":
                    under_test.ahead(data.draw(order))
                elif step == "forget":
                    under_test.forget(data.draw(st.sampled_from(crowd)))
                else:
                    under_test.drop()
            if last is not None:  # its run reads it until now
                assert [arenas.rows(last[0], reference) for reference in last[2]] == last[1]
            batch, beside = data.draw(order), data.draw(st.booleans())
            side, references = under_test.place(batch, beside=beside)
            wanted = [joined(batch, index) for index in range(len(batch[0].inputs))]
            assert [arenas.rows(side, reference) for reference in references] == wanted
            assert [reference.shape[0] for reference in references] == [sum(each.rows for each in batch)] * len(wanted)
            assert all(reference.offset % staging.ALIGNMENT == 0 for reference in references)
            if beside and last is not None:
                assert side != last[0]
                assert [arenas.rows(last[0], reference) for reference in last[2]] == last[1]
            last = side, wanted, references


class Counted(Source):
    """Says how often it was read."""

    def __init__(self, size: int) -> None:
        super().__init__(Memory(-1), 0, size, "inputs[0]")
        self.reads = 0

    def read_into(self, view: memoryview) -> None:
        self.reads += 1
        view[:] = b"r" * len(view)


def referred(size: int) -> tuple[Request, Counted]:
    source = Counted(size)
    shape = (1, size)
    return Request("id", 1, ("UINT8", size), (Referred("x", "UINT8", shape, source),), ("y",)), source


def test_what_was_copied_ahead_is_not_copied_again() -> None:
    arenas = Arenas()
    under_test = made(arenas)
    crowd = [referred(staging.WORTH_BYTES) for _ in range(4)]
    requests = [each for each, _ in crowd]
    under_test.ahead(requests[:2])
    under_test.ahead(requests[:3])
    under_test.place(requests, beside=True)
    assert [source.reads for _, source in crowd] == [1, 1, 1, 1]


def test_only_those_behind_one_who_left_are_copied_again() -> None:
    under_test = made(Arenas())
    crowd = [referred(staging.WORTH_BYTES) for _ in range(4)]
    a, b, c, d = (each for each, _ in crowd)
    under_test.ahead([a, b, c])
    assert under_test.forget(b)
    assert not under_test.forget(b)
    under_test.ahead([a, c])
    under_test.place([a, c, d], beside=True)
    assert [source.reads for _, source in crowd] == [1, 1, 2, 1]


def test_what_is_small_waits_for_its_batch_and_a_lone_request_needs_one_side() -> None:
    arenas = Arenas()
    under_test = made(arenas)
    small = request(("UINT8", [b"abc"]))
    assert not worthwhile(small)
    under_test.ahead([small])
    assert arenas.asked == []
    for _ in range(3):
        assert under_test.place([small], beside=False)[0] == 0
    assert [side for _, side in arenas.asked] == [0, 0, 0]


@pytest.mark.interpreted
def test_a_batch_beyond_what_is_copied_ahead_is_placed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "WORTH_BYTES", 0)
    monkeypatch.setattr(staging, "AHEAD_BYTES", 2 * 64)
    arenas = Arenas()
    under_test = made(arenas)
    crowd = [request(("UINT8", [bytes([65 + number]) * 64])) for number in range(4)]
    under_test.ahead(crowd)
    assert arenas.asked == [(128, 1)]
    side, (x,) = under_test.place(crowd, beside=True)
    assert (side, arenas.rows(side, x)) == (1, b"A" * 64 + b"B" * 64 + b"C" * 64 + b"D" * 64)


def test_without_a_batch_dimension_a_request_lies_as_it_came() -> None:
    arenas = Arenas()
    under_test = made(arenas, batched=False)
    one = Request("id", 1, "kind", (Tensor("x", "UINT8", (2, 3), b"abcdef"),), ("y",))
    with patch.object(staging, "WORTH_BYTES", 0):
        under_test.ahead([one])
    side, (x,) = under_test.place([one], beside=True)
    assert (side, tuple(x.shape), arenas.rows(side, x)) == (1, (2, 3), b"abcdef")
