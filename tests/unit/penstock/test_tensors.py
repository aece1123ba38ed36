"""Tensors to bytes and back: every datatype, and everything that is not the tensor it claims to be."""

from __future__ import annotations

import array as arrays
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock import tensors
from penstock.errors import InvalidArgument
from penstock.oip import inference_pb2 as oip

PLAIN = [name for name in tensors.DATATYPES if name not in ("BYTES", "BF16")]


def test_the_table_is_the_protocols() -> None:
    sizes = {row.name: row.size for row in tensors.DATATYPES.values()}
    assert sizes == {
        "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
        "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
    }  # fmt: skip
    fields = set(oip.InferTensorContents.DESCRIPTOR.fields_by_name)
    assert {row.field for row in tensors.DATATYPES.values()} - {""} == fields
    assert {name for name, row in tensors.DATATYPES.items() if not row.field} == {"FP16", "BF16"}


@pytest.mark.parametrize("name", ["", "fp32", "FLOAT", "INT128", "STRING", "FP32\n", "x" * 10_000])
def test_an_unknown_datatype_is_named_shortly(name: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a datatype") as caught:
        tensors.datatype(name, "inputs[0].datatype")
    assert caught.value.field == "inputs[0].datatype" and len(caught.value.message) < 300


@pytest.mark.parametrize("name", PLAIN)
@given(data=st.data())
def test_plain_datatypes_round_trip(name: str, data: st.DataObject) -> None:
    dtype = np.dtype(tensors.DATATYPES[name].numpy)
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
    chosen, shape, raw = tensors.from_numpy(array)
    assert (chosen, shape, raw) == (name, list(array.shape), array.tobytes())
    back = tensors.to_numpy(name, shape, raw)
    assert back.dtype == dtype and back.shape == array.shape
    assert back.tobytes() == raw


@given(hnp.arrays(object, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=st.binary(max_size=20)))
def test_bytes_round_trip(array: Any) -> None:
    chosen, shape, raw = tensors.from_numpy(array)
    assert chosen == "BYTES"
    back = tensors.to_numpy("BYTES", shape, raw)
    assert back.shape == array.shape and back.tolist() == array.tolist()


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_packed_bytes_are_lengths_and_bytes(items: list[bytes]) -> None:
    packed = tensors.pack_bytes(items)
    assert packed == b"".join(struct.pack("<I", len(item)) + item for item in items)
    assert tensors.unpack_bytes(packed, len(items)) == items


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=5), st.data())
def test_no_cut_or_stretched_bytes_tensor_is_taken(items: list[bytes], data: st.DataObject) -> None:
    packed = tensors.pack_bytes(items)
    cut = data.draw(st.integers(0, len(packed) - 1))
    for wrong, count in ((packed[:cut], len(items)), (packed, len(items) - 1), (packed, len(items) + 1)):
        with pytest.raises(InvalidArgument):
            tensors.unpack_bytes(wrong, count)
    with pytest.raises(InvalidArgument):
        tensors.unpack_bytes(packed + b"\0", len(items))


@given(st.binary(max_size=64), st.integers(0, 1 << 40))
def test_hostile_bytes_tensors_end_in_an_error_or_an_answer(raw: bytes, count: int) -> None:
    try:
        items = tensors.unpack_bytes(raw, count)
    except InvalidArgument:
        return
    assert tensors.pack_bytes(items) == raw and len(items) == count


def test_a_length_beyond_the_buffer_allocates_nothing() -> None:
    for length in (5, 1 << 31, (1 << 32) - 1):
        with pytest.raises(InvalidArgument, match="cut short"):
            tensors.unpack_bytes(struct.pack("<I", length) + b"abcd", 1)


def test_a_claimed_shape_allocates_nothing() -> None:
    """2**40 objects would be eight tebibytes."""
    for name in tensors.DATATYPES:
        with pytest.raises(InvalidArgument):
            tensors.to_numpy(name, [1 << 40], b"\0\0\0\0")


@pytest.mark.parametrize("name", [*PLAIN, "BF16"])
def test_a_buffer_of_another_size_is_refused(name: str) -> None:
    size = tensors.DATATYPES[name].size
    for wrong in (0, 6 * size - 1, 6 * size + 1, 6 * size + size, 1000):
        with pytest.raises(InvalidArgument, match=f"takes {6 * size}"):
            tensors.to_numpy(name, [2, 3], bytes(wrong))


@pytest.mark.parametrize(
    "shape",
    [
        [-1], [2, -1], [-(1 << 63)], [1 << 41], [(1 << 63) - 1], [1 << 20, 1 << 21], [1 << 31, 1 << 31, 1 << 31],
        [0, 1 << 62, 4], [0, (1 << 63) - 1], [1 << 62, 4, 0], [1] * 33, [0] * 100, [-1, 0],
    ],
)  # fmt: skip
def test_impossible_shapes(shape: list[int]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        tensors.element_count(shape, "inputs[1].shape")
    assert caught.value.field == "inputs[1].shape"
    for name in tensors.DATATYPES:
        with pytest.raises(InvalidArgument):
            tensors.to_numpy(name, shape, b"")


@given(
    st.lists(st.integers(-2, 1 << 63), max_size=40), st.sampled_from(sorted(tensors.DATATYPES)), st.binary(max_size=32)
)
def test_no_claim_reaches_numpy_unchecked(shape: list[int], name: str, raw: bytes) -> None:
    try:
        array = tensors.to_numpy(name, shape, raw)
    except InvalidArgument:
        return
    assert list(array.shape) == shape


def test_possible_shapes() -> None:
    assert tensors.element_count([]) == 1
    assert tensors.element_count([0, 7]) == 0
    assert tensors.element_count([1 << 40]) == 1 << 40
    assert tensors.to_numpy("FP32", [], struct.pack("<f", 2.5)) == 2.5
    assert tensors.to_numpy("INT8", [3, 0, 2], b"").shape == (3, 0, 2)


def test_arrays_are_views() -> None:
    raw = bytes(range(8))
    view = tensors.to_numpy("UINT8", [2, 4], raw)
    assert not view.flags.owndata and not view.flags.writeable
    assert tensors.to_numpy("UINT16", [4], memoryview(arrays.array("H", range(4)))).tolist() == [0, 1, 2, 3]


@given(hnp.arrays("<f4", hnp.array_shapes(max_dims=2)))
def test_bf16_is_the_nearest_upper_half(array: Any) -> None:
    chosen, shape, raw = tensors.from_numpy(array, "BF16")
    assert chosen == "BF16" and len(raw) == 2 * array.size
    back = tensors.to_numpy("BF16", shape, raw)
    assert np.array_equal(np.isnan(back), np.isnan(array))
    finite = np.isfinite(array) & np.isfinite(back)
    # Eight bits of significand: half a unit of the last place; subnormals have a fixed one.
    bound = np.maximum(np.abs(array[finite].astype("f8")) * 2.0**-8, 2.0**-133)
    assert (np.abs(back[finite].astype("f8") - array[finite].astype("f8")) <= bound).all()
    again = tensors.from_numpy(back, "BF16")[2]
    assert np.array_equal(tensors.to_numpy("BF16", shape, again), back, equal_nan=True)


def test_bf16_by_hand() -> None:
    cases = {1.0: 0x3F80, -2.0: 0xC000, 0.0: 0x0000, float("inf"): 0x7F80, 3.3895e38: 0x7F7F, 1.00390625: 0x3F80}
    for value, bits in cases.items():
        assert tensors.from_numpy(np.array([value], dtype="f4"), "BF16")[2] == struct.pack("<H", bits)


def test_what_numpy_calls_them() -> None:
    assert tensors.from_numpy(np.array(["ä", "b"]))[2] == tensors.pack_bytes(["ä".encode(), b"b"])
    assert tensors.from_numpy(np.array([b"ab", b"c"]))[2] == tensors.pack_bytes([b"ab", b"c"])
    assert tensors.from_numpy(np.array([[1, 2]], dtype=">i4")) == ("INT32", [1, 2], struct.pack("<ii", 1, 2))
    assert tensors.from_numpy(np.arange(6).reshape(2, 3).T)[2] == struct.pack("<6q", 0, 3, 1, 4, 2, 5)


@pytest.mark.parametrize("dtype", ["c8", "c16", "M8[s]", "m8[s]", "V2", [("a", "i4")]])
def test_dtypes_without_a_datatype(dtype: Any) -> None:
    with pytest.raises(InvalidArgument, match="has no datatype"):
        tensors.from_numpy(np.zeros(1, dtype=dtype))


@pytest.mark.parametrize("item", [7, 1 << 40, 1.5, None, ["a"], True])
def test_only_text_and_bytes_are_bytes(item: object) -> None:
    array = np.empty(1, dtype=object)
    array[0] = item
    with pytest.raises(InvalidArgument, match="must be str or bytes"):
        tensors.from_numpy(array)


def test_no_value_is_changed_to_fit_an_integer() -> None:
    assert tensors.from_numpy(np.array([1.0, 255.0]), "UINT8") == ("UINT8", [2], b"\x01\xff")
    assert tensors.from_numpy(np.array([1, 0]), "BOOL") == ("BOOL", [2], b"\x01\x00")
    assert tensors.from_numpy(np.array(5), "INT8") == ("INT8", [], b"\x05")
    for values, name in (([1.5], "INT32"), ([300], "UINT8"), ([-1], "UINT64"), ([float("nan")], "INT8"), ([2], "BOOL")):
        with pytest.raises(InvalidArgument, match="cannot hold"):
            tensors.from_numpy(np.array(values), name)
