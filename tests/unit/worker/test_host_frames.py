"""The worker believes nothing that a child says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import BY_NAME, Internal, InvalidArgument
from penstock.internal.v1 import engine_pb2
from services.worker.engines.engine import DeviceLost, OutOfMemory
from services.worker.engines.trt.matching import PlanMissing, Target
from services.worker.host import frames
from services.worker.host.frames import BrokenFrame, FrameBuffer, checked_costs, checked_outputs, checked_row_failures
from services.worker.host.process import environment
from tests.harness.engines import spec

ARENA = memoryview(bytes(range(256)))
PROMISED = {made.name: made for made in (spec("y", "FP32", 4), spec("t", "BYTES", 1), spec("b", "UINT8", -1))}


def reference(**fields: Any) -> engine_pb2.TensorRef:
    return engine_pb2.TensorRef(
        **{"name": "y", "datatype": "FP32", "shape": [2, 4], "offset": 64, "size_bytes": 32, **fields}
    )


def test_an_honest_answer_gives_views() -> None:
    text = reference(name="t", datatype="BYTES", shape=[2, 1], offset=0, size_bytes=9)
    outputs = checked_outputs([text, reference()], ARENA, PROMISED, 2)
    assert [output.name for output in outputs] == ["t", "y"]
    assert bytes(outputs[1].data) == bytes(range(64, 96))
    assert outputs[1].shape == (2, 4)
    whole = checked_outputs(
        [reference(name="b", datatype="UINT8", shape=[256], offset=0, size_bytes=256)], ARENA, PROMISED, None
    )
    assert len(whole[0].data) == 256
    empty = checked_outputs([reference(shape=[2, 0], offset=256, size_bytes=0)], ARENA, PROMISED, 2)
    assert len(empty[0].data) == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"offset": 225}, {"offset": 2**64 - 1}, {"offset": 2**64 - 16}, {"offset": 2**63},
        {"offset": 257, "size_bytes": 0}, {"shape": [2, 0], "offset": 257, "size_bytes": 0},
        {"size_bytes": 31}, {"size_bytes": 33}, {"size_bytes": 2**64 - 1}, {"size_bytes": 0},
        {"shape": [2, 8], "size_bytes": 32}, {"shape": [2, -4]}, {"shape": [-2, -4]}, {"shape": [1, 8]}, {"shape": []},
        {"shape": [2, 2**62, 4], "size_bytes": 0}, {"shape": [2, 2**62], "size_bytes": 0}, {"shape": [2] + [1] * 40},
        {"shape": [2, 2**31, 2**31, 4], "size_bytes": 32},
        {"name": "z"}, {"name": ""}, {"datatype": "FP64"}, {"datatype": "NOPE"}, {"datatype": ""},
        {"name": "t", "datatype": "BYTES", "shape": [2, 1], "size_bytes": 7},
        {"name": "t", "datatype": "BYTES", "shape": [2, 2**40], "size_bytes": 64},
    ],
)  # fmt: skip
def test_a_lie_about_a_tensor_is_found(lie: dict[str, Any]) -> None:
    with pytest.raises(BrokenFrame):
        checked_outputs([reference(**lie)], ARENA, PROMISED, 2)


def test_the_same_output_twice_and_more_outputs_than_promised() -> None:
    with pytest.raises(BrokenFrame, match="not promised"):
        checked_outputs([reference(), reference()], ARENA, PROMISED, 2)
    with pytest.raises(BrokenFrame, match="4 outputs"):
        checked_outputs([reference()] * 4, ARENA, PROMISED, 2)


u64 = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
i64 = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]))


@given(st.sampled_from("yb"), u64, u64, st.lists(i64, max_size=6), st.sampled_from([None, 0, 1, 2]))
def test_whatever_passes_lies_in_the_arena(
    name: str, offset: int, size: int, shape: list[int], rows: int | None
) -> None:
    datatype = PROMISED[name].datatype
    lie = engine_pb2.TensorRef(name=name, datatype=datatype, shape=shape, offset=offset, size_bytes=size)
    try:
        (output,) = checked_outputs([lie], ARENA, PROMISED, rows)
    except BrokenFrame:
        return
    assert len(output.data) == size
    assert bytes(output.data) == bytes(ARENA)[offset : offset + size]
    assert rows is None or output.shape[0] == rows


def test_row_failures_name_rows_of_the_batch_once() -> None:
    def row(number: int, code: str = "INVALID_ARGUMENT", message: str = "m") -> engine_pb2.RowFailure:
        return engine_pb2.RowFailure(row=number, failure=engine_pb2.Failure(code=code, message=message))

    assert [*checked_row_failures([row(1), row(0)], 2)] == [1, 0]
    for bad in ([row(2)], [row(-1)], [row(0), row(0)]):
        with pytest.raises(BrokenFrame):
            checked_row_failures(bad, 2)


def test_costs_are_of_sizes_and_of_times() -> None:
    assert [*checked_costs({8: 2.0, 1: 1.0}).items()] == [(1, 1.0), (8, 2.0)]
    assert checked_costs({}) == {}
    for bad in (
        {0: 1.0},
        {1: 0.0},
        {1: -1.0},
        {1: float("nan")},
        {1: float("inf")},
        dict.fromkeys(range(1, 2000), 1.0),
    ):
        with pytest.raises(BrokenFrame):
            checked_costs(bad)


def test_the_errors_on_which_a_worker_acts_are_known_again() -> None:
    for kind in (OutOfMemory, DeviceLost):
        told = frames.error_of(frames.failure_of(kind("said", detail="why")))
        assert (type(told), told.message, told.detail) == (kind, "said", "why")


def test_a_missing_plan_says_what_it_must_be_for() -> None:
    target = Target("tensorrt-rtx", "1.7.1.116", "sm89")
    told = frames.error_of(frames.failure_of(PlanMissing("no plan", target, detail="why")))
    assert isinstance(told, PlanMissing)
    assert (told.message, told.target, told.detail) == ("no plan", target, "why")
    words = engine_pb2.PlanTarget(builder="b" * 999, version="1\n2", architecture="")
    lies = frames.error_of(engine_pb2.Failure(code="UNSUPPORTED", message="m", missing_plan=words))
    assert isinstance(lies, PlanMissing)
    assert lies.target == Target("b" * frames.MAX_WORD, "12", "")


def test_failures_keep_their_class_and_lose_control_characters() -> None:
    for code, kind in BY_NAME.items():
        error = frames.error_of(
            engine_pb2.Failure(code=code, message="a\r\nb\x1b[31m" + "x" * 9000, detail="d" * 99_999)
        )
        assert type(error) is kind
        assert error.message.startswith("a  b [31mx")
        assert len(error.message) == frames.MAX_TEXT
        assert len(error.detail) == frames.MAX_DETAIL
    unknown = frames.error_of(engine_pb2.Failure(code="EVIL", message="believe me"))
    assert type(unknown) is Internal
    assert "believe" not in unknown.message
    sent = frames.error_of(frames.failure_of(InvalidArgument("m", detail="d")))
    assert (type(sent), sent.message, sent.detail) == (InvalidArgument, "m", "d")


@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_they_are_cut(bodies: list[bytes], step: int) -> None:
    stream = b"".join(frames.HEADER.pack(len(body)) + body for body in bodies)
    buffer = FrameBuffer()
    got: list[bytes] = []
    for at in range(0, len(stream), step):
        got += buffer.feed(stream[at : at + step])
    assert got == bodies


def test_a_frame_of_any_length_is_not_waited_for() -> None:
    with pytest.raises(BrokenFrame, match="4294967295 bytes"):
        FrameBuffer().feed(b"\xff\xff\xff\xff")


@given(st.binary(max_size=64))
def test_random_bytes_are_a_broken_frame_or_a_whole_answer(data: bytes) -> None:
    try:
        response = frames.parse_response(data, 7)
    except BrokenFrame:
        return
    assert response.id == 7
    assert response.WhichOneof("result") is not None


def test_a_child_inherits_no_secret() -> None:
    parent = {
        "PATH": "/bin", "PENSTOCK_WORKER_TOKEN": "s", "PENSTOCK_TOKEN_FILE": "s", "AWS_SECRET_ACCESS_KEY": "s",
        "HOME": "/root", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C", "PYTHONPATH": "/a",
        "ORT_LOAD_CONFIG_FROM_MODEL": "1",
    }  # fmt: skip
    child = environment(parent, 3)
    assert "s" not in child.values()
    assert child["OMP_NUM_THREADS"] == child["RAYON_NUM_THREADS"] == "3"
    assert child["PYTHONPATH"].endswith(":/a")
    assert set(child) & set(parent) == {"PATH", "CUDA_VISIBLE_DEVICES", "LC_ALL", "PYTHONPATH"}
