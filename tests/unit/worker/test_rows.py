"""Cutting outputs into rows."""

from __future__ import annotations

import pytest

from penstock.errors import Internal, InvalidArgument
from penstock.tensors import pack_bytes
from services.worker.rows import Sliced
from tests.unit.worker.doubles import EchoOutput


def output(data: bytes, *shape: int, datatype: str = "UINT8", name: str = "y") -> EchoOutput:
    return EchoOutput(name, datatype, shape, memoryview(data))


def take(sliced: Sliced, first: int, count: int, *names: str) -> list[tuple[tuple[int, ...], bytes]]:
    tensors = sliced.take(first, count, names or ("y",))
    assert isinstance(tensors, tuple)
    return [(tensor.shape, bytes(tensor.data)) for tensor in tensors]


def test_rows_of_fixed_size() -> None:
    sliced = Sliced([output(b"aabbcc", 3, 2)], 3, {})
    assert take(sliced, 0, 1) == [((1, 2), b"aa")]
    assert take(sliced, 1, 2) == [((2, 2), b"bbcc")]
    assert take(sliced, 0, 3) == [((3, 2), b"aabbcc")]


def test_rows_of_bytes() -> None:
    parts = [pack_bytes([b"", b"a"]), pack_bytes([b"bcd", b""]), pack_bytes([b"", b""])]
    sliced = Sliced([output(b"".join(parts), 3, 2, datatype="BYTES")], 3, {})
    assert take(sliced, 0, 1) == [((1, 2), parts[0])]
    assert take(sliced, 1, 1) == [((1, 2), parts[1])]
    assert take(sliced, 2, 1) == [((1, 2), parts[2])]


def test_rows_without_elements() -> None:
    for datatype in ("FP32", "BYTES"):
        assert take(Sliced([output(b"", 2, 0, datatype=datatype)], 2, {}), 1, 1) == [((1, 0), b"")]


def test_outputs_are_chosen_by_name_and_order() -> None:
    sliced = Sliced([output(b"ab", 2), output(b"cd", 2, name="z")], 2, {})
    assert take(sliced, 1, 1, "z", "y") == [((1,), b"d"), ((1,), b"b")]


def test_without_a_batch_dimension_everything_goes_to_the_one_request() -> None:
    assert take(Sliced([output(b"abc", 3)], None, {}), 0, 1) == [((3,), b"abc")]


def test_a_failed_row_is_a_failure_of_its_request() -> None:
    sliced = Sliced([output(b"abc", 3)], 3, {1: InvalidArgument("bad", field="x")})
    assert take(sliced, 0, 1) == [((1,), b"a")]
    failure = sliced.take(0, 3, ("y",))
    assert isinstance(failure, InvalidArgument)
    assert (failure.message, failure.field) == ("item 1: bad", "x")


@pytest.mark.parametrize(
    "broken",
    [
        output(b"ab", 1, 2),
        output(b"ab"),
        output(b"abc", 2, 1),
        output(b"\x01\x00\x00\x00a", 2, 1, datatype="BYTES"),
        output(pack_bytes([b"a", b"b", b"c"]), 2, 1, datatype="BYTES"),
        output(b"\xff\x00\x00\x00a" * 2, 2, 1, datatype="BYTES"),
        output(b"ab", 2, 1, name="other"),
    ],
    ids=["rows", "scalar", "size", "cut", "longer", "length", "missing"],
)
def test_a_broken_promise_of_the_engine_is_internal(broken: EchoOutput) -> None:
    with pytest.raises(Internal):
        Sliced([broken], 2, {}).take(0, 1, ("y",))
