"""Tensors in shared memory at the worker: staged and written in place, checked again, and whatever becomes of the
memory meanwhile, it is one request that suffers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from penstock import regions
from penstock.errors import InvalidArgument, PenstockError, ResourceExhausted, TooLarge, Unsupported
from penstock.oip import inference_pb2 as oip
from penstock.tensors import pack_bytes
from penstock.v1 import cluster_pb2
from penstock.v1 import manifest_pb2 as pb
from penstock.wire.call import REGIONS, Call
from penstock.wire.origin import Origin
from services.worker import references
from services.worker.codec import Schema
from services.worker.inference import Inference
from services.worker.metrics import ReplicaMetrics
from services.worker.serving import Serving, Standing
from services.worker.statistics import Statistics
from tests.harness.shared_memory import NEIGHBOUR, STRANGER, path_of, shared_object
from tests.unit.worker.doubles import EchoEngine, batcher

ROW = bytes(range(64))


class Bench:
    """A worker's inference over one echoing replica: y is x, rows of 64 bytes or of one BYTES element."""

    def __init__(self, engine: EchoEngine, datatype: str) -> None:
        shape = [1] if datatype == "BYTES" else [64]
        self.manifest = pb.Manifest(
            name="m",
            format="onnx",
            inputs=[pb.TensorSpec(name="x", datatype=datatype, shape=shape)],
            outputs=[pb.TensorSpec(name="y", datatype=datatype, shape=shape)],
            batching=pb.Batching(max_batch_size=4),
        )
        self.engine, self.datatype = engine, datatype
        statistics, metrics = Statistics(), ReplicaMetrics("m", 1)
        self.batcher = batcher(engine, statistics=statistics)
        schema = Schema("m", 1, self.manifest)
        serving = Serving("m", 1, self.manifest, schema, self.batcher, statistics, metrics, lambda: 0)
        self.standing = Standing("m", 1, cluster_pb2.REPLICA_STATE_READY, "", serving)
        self.inference = Inference("worker-1", self, lambda: None)

    def find(self, name: str, version: int) -> Standing | None:
        return self.standing

    def versions(self, name: str) -> list[Standing]:
        return [self.standing]

    def everything(self) -> list[Standing]:
        return [self.standing]

    @property
    def open(self) -> int:
        """Objects that are open."""
        return self.inference._references.open

    def request(self, size: int = 64, offset: int = 0, *, room: int = -1, at: int = 64) -> oip.ModelInferRequest:
        """One row, from `size` bytes at `offset` of region r; with `room`, its answer goes to `at` of r."""
        message = oip.ModelInferRequest(model_name="m", id="7")
        message.inputs.add(name="x", datatype=self.datatype, shape=[1, 1 if self.datatype == "BYTES" else 64])
        place(message.inputs[0].parameters, size, offset)
        if room >= 0:
            place(message.outputs.add(name="y").parameters, room, at)
        return message

    async def ask(self, message: oip.ModelInferRequest, header: str, origin: Origin = NEIGHBOUR) -> Any:
        deadline = asyncio.get_running_loop().time() + 30
        headers = {REGIONS: header} if header else {}
        answer = await self.inference.infer(
            Call("ModelInfer", message.SerializeToString(), deadline, headers, "gateway", origin=origin)
        )
        return oip.ModelInferResponse.FromString(answer.payload)


def place(parameters: Any, size: int, offset: int, region: str = "r") -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


@asynccontextmanager
async def bench(gate: asyncio.Semaphore | None = None, datatype: str = "UINT8") -> AsyncIterator[Bench]:
    made = Bench(EchoEngine(gate), datatype)
    running = asyncio.ensure_future(made.batcher.run())
    try:
        yield made
        assert made.engine.broken == []
        assert made.open == 0, "nothing stays open"
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
def key() -> Iterator[str]:
    with shared_object(256, ROW) as made:
        yield made


def header(key: str, size: int = 256, offset: int = 0) -> str:
    return regions.pack([regions.measured("r", key, offset, size)])


def content(key: str, begin: int = 0, end: int = 256) -> bytes:
    with open(path_of(key), "rb") as file:
        return file.read()[begin:end]


def put(key: str, data: bytes, offset: int = 0) -> None:
    with open(path_of(key), "r+b") as file:
        file.seek(offset)
        file.write(data)


async def test_a_row_is_read_from_its_place_and_its_answer_written_to_its_own(key: str) -> None:
    async with bench() as it:
        response = await it.ask(it.request(room=100), header(key))
    assert it.engine.batches == [[ROW]]
    assert content(key) == ROW + ROW + bytes(128)
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "UINT8", [1, 64])
    assert response.id == "7"
    assert list(response.raw_output_contents) == [b""], "one buffer per output, as Triton's clients count them"
    said = {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in output.parameters.items()}
    assert said == {"shared_memory_region": "r", "shared_memory_byte_size": 64, "shared_memory_offset": 64}


async def test_offsets_are_those_of_the_region(key: str) -> None:
    put(key, ROW[::-1], 100)
    async with bench() as it:
        await it.ask(it.request(offset=36, room=64, at=0), header(key, offset=64, size=192))
    assert it.engine.batches == [[ROW[::-1]]]
    assert content(key, 64, 128) == ROW[::-1]


async def test_a_batch_of_rows_of_either_kind(key: str) -> None:
    gate = asyncio.Semaphore(0)
    async with bench(gate) as it:
        first = asyncio.ensure_future(it.ask(it.request(), header(key)))
        await it.engine.started.acquire()
        travels = oip.ModelInferRequest(model_name="m", raw_input_contents=[b"t" * 64])
        travels.inputs.add(name="x", datatype="UINT8", shape=[1, 64])
        others = [
            asyncio.ensure_future(work)
            for work in (
                it.ask(travels, ""),
                it.ask(it.request(room=64, at=64), header(key)),
                it.ask(it.request(room=64, at=128), header(key)),
            )
        ]
        await asyncio.sleep(0)
        gate.release()
        gate.release()
        answers = await asyncio.gather(first, *others)
    assert it.engine.batches == [[ROW], [b"t" * 64, ROW, ROW]]
    assert [list(each.raw_output_contents) for each in answers] == [[ROW], [b"t" * 64], [b""], [b""]]
    assert content(key) == ROW * 3 + bytes(64)


@pytest.mark.parametrize(("size", "room"), [(0, 64), (63, 64), (64, 64), (191, 64), (0, -1), (63, -1)])
async def test_memory_that_shrinks_in_the_queue_fails_its_request_alone(key: str, size: int, room: int) -> None:
    gate = asyncio.Semaphore(0)
    async with bench(gate) as it:
        with shared_object(256, ROW[::-1]) as other:
            held = asyncio.ensure_future(it.ask(it.request(), header(other)))
            await it.engine.started.acquire()
            shrunk = asyncio.ensure_future(it.ask(it.request(room=room, at=128), header(key)))
            whole = asyncio.ensure_future(it.ask(it.request(room=64, at=128), header(other)))
            await asyncio.sleep(0)
            os.truncate(path_of(key), size)
            gate.release()
            gate.release()
            with pytest.raises(InvalidArgument, match="too small"):
                await shrunk
            await asyncio.gather(held, whole)
            assert content(other, 128, 192) == ROW[::-1]
    assert it.engine.batches[1][0] == (ROW if size >= 64 else bytes(64)), "nobody else's bytes stand in for lost ones"
    assert os.stat(path_of(key)).st_size == size, "it is not made larger again"


async def test_memory_that_has_shrunk_costs_no_place_in_the_queue(key: str) -> None:
    async with bench() as it:
        before = header(key)
        os.truncate(path_of(key), 63)
        with pytest.raises(InvalidArgument, match="too small"):
            await it.ask(it.request(), before)
        assert it.engine.batches == []


async def test_what_is_taken_away_while_a_request_runs_stays_until_it_has_ended(key: str) -> None:
    gate = asyncio.Semaphore(0)
    async with bench(gate) as it:
        running = asyncio.ensure_future(it.ask(it.request(room=64), header(key)))
        await it.engine.started.acquire()
        os.link(path_of(key), path_of(key) + "-seen")
        os.unlink(path_of(key))
        assert it.open == 1
        gate.release()
        await running
        assert content(key + "-seen") == ROW + ROW + bytes(128)
        os.unlink(path_of(key) + "-seen")
        assert it.open == 0


async def test_another_object_under_the_same_key_is_not_taken_for_it(key: str) -> None:
    async with bench() as it:
        before = header(key)
        os.rename(path_of(key), path_of(key) + "-old")
        with shared_object(256) as another:
            os.rename(path_of(another), path_of(key))
            with pytest.raises(InvalidArgument, match="register it again"):
                await it.ask(it.request(), before)
        os.unlink(path_of(key) + "-old")


async def test_those_who_leave_are_not_written_to_and_leave_nothing_open(key: str) -> None:
    gate = asyncio.Semaphore(0)
    async with bench(gate) as it:
        for _ in range(50):
            leaving = asyncio.ensure_future(it.ask(it.request(room=64), header(key)))
            await it.engine.started.acquire()
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            assert it.open == 0
            gate.release()
        await asyncio.sleep(0)
    assert content(key, 64, 128) == bytes(64)


@pytest.mark.parametrize("origin", [STRANGER, Origin(None)])
async def test_only_a_neighbour_may_say_where_memory_is(key: str, origin: Origin) -> None:
    async with bench() as it:
        with pytest.raises(Unsupported):
            await it.ask(it.request(), header(key), origin)


async def test_without_the_header_it_is_unsupported(key: str) -> None:
    async with bench() as it:
        with pytest.raises(Unsupported):
            await it.ask(it.request(), "")
        raw = oip.ModelInferRequest(model_name="m", raw_input_contents=[ROW])
        raw.inputs.add(name="x", datatype="UINT8", shape=[1, 64])
        place(raw.outputs.add(name="y").parameters, 64, 0)
        with pytest.raises(Unsupported):
            await it.ask(raw, "")


@pytest.mark.parametrize(
    ("size", "offset", "room", "at"),
    [
        (63, 0, 64, 64),
        (65, 0, 64, 64),
        (64, 193, 64, 64),
        (64, 2**31, 64, 64),
        (64, 2**63 - 1, 64, 64),
        (-64, 0, 64, 64),
        (64, -1, 64, 64),
        (2**63 - 1, 64, 64, 64),
        (64, 0, 257, 0),
        (64, 0, 64, 193),
        (64, 0, 2**63 - 1, 2**63 - 1),
    ],
)
async def test_bounds_are_checked_here_too(key: str, size: int, offset: int, room: int, at: int) -> None:
    async with bench() as it:
        with pytest.raises(InvalidArgument):
            await it.ask(it.request(size, offset, room=room, at=at), header(key))
        assert it.engine.batches == []
    assert content(key) == ROW + bytes(192)


async def test_an_output_that_does_not_fit_is_told_with_both_sizes_and_not_written(key: str) -> None:
    async with bench() as it:
        with pytest.raises(InvalidArgument, match=r"outputs\[0\]: the output has 64 bytes.* is 63"):
            await it.ask(it.request(room=63), header(key))
    assert content(key) == ROW + bytes(192)


@pytest.mark.parametrize("text", ["", "x", "r;/k;1;0", "r;../x;1;0;64", "r;/nobody-has-this;1;0;64", "q;/k;1;0;64"])
async def test_a_header_that_cannot_be_believed(key: str, text: str) -> None:
    async with bench() as it:
        with pytest.raises((InvalidArgument, Unsupported)):
            await it.ask(it.request(), text)


async def test_a_region_that_did_not_come_along(key: str) -> None:
    async with bench() as it:
        message = it.request()
        place(message.inputs[0].parameters, 64, 0, "other")
        with pytest.raises(InvalidArgument, match="did not come"):
            await it.ask(message, header(key))


async def test_contents_do_not_come_beside_shared_memory(key: str) -> None:
    async with bench() as it:
        typed = it.request()
        typed.inputs[0].contents.uint_contents.extend(ROW)
        raw = it.request()
        raw.raw_input_contents.append(ROW)
        for message in (typed, raw):
            with pytest.raises(InvalidArgument):
                await it.ask(message, header(key))


async def test_bytes_are_copied_when_they_are_checked(key: str) -> None:
    gate = asyncio.Semaphore(0)
    element = pack_bytes([b"some text"])
    put(key, element)
    async with bench(gate, "BYTES") as it:
        held = asyncio.ensure_future(it.ask(it.request(len(element)), header(key)))
        await it.engine.started.acquire()
        queued = asyncio.ensure_future(it.ask(it.request(len(element), room=64), header(key)))
        await asyncio.sleep(0)
        put(key, b"\xff" * len(element))  # lengths that would lead anywhere
        gate.release()
        gate.release()
        await asyncio.gather(held, queued)
        assert content(key, 64, 64 + len(element)) == element
        with pytest.raises(InvalidArgument):
            await it.ask(it.request(len(element)), header(key))


async def test_booleans_are_checked(key: str) -> None:
    put(key, b"\x01\x00" * 32)
    async with bench(datatype="BOOL") as it:
        await it.ask(it.request(room=64), header(key))
        put(key, b"\x02")
        with pytest.raises(InvalidArgument, match="0 or 1"):
            await it.ask(it.request(), header(key))


async def test_what_is_copied_and_what_is_open_is_bounded(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Semaphore(0)
    put(key, bytes(64))
    monkeypatch.setattr(references, "MAX_COPIED", 100)
    monkeypatch.setattr(references, "MAX_OPEN", 1)
    async with bench(gate, "BOOL") as it:
        held = asyncio.ensure_future(it.ask(it.request(), header(key)))
        await it.engine.started.acquire()
        with pytest.raises(ResourceExhausted):
            await it.ask(it.request(), header(key))
        with shared_object(256) as other, pytest.raises(ResourceExhausted):
            await it.ask(it.request(), header(other))
        gate.release()
        gate.release()
        await held
        await it.ask(it.request(), header(key))


async def test_a_sparse_giant_is_refused_before_anything_is_made_for_it() -> None:
    with shared_object(0) as key:
        os.truncate(path_of(key), 1 << 40)
        async with bench(datatype="BYTES") as it:
            with pytest.raises(TooLarge):
                await it.ask(it.request(1 << 40), header(key, 1 << 40))


async def test_no_error_tells_a_path(key: str) -> None:
    words: list[str] = []
    async with bench() as it:
        for message, text in (
            (it.request(), "r;/nobody-has-this;1;0;64"),
            (it.request(63), header(key)),
            (it.request(64, 250), header(key)),
            (it.request(room=3), header(key)),
        ):
            with pytest.raises(PenstockError) as caught:
                await it.ask(message, text)
            words.append(caught.value.message)
        before = header(key)
        os.truncate(path_of(key), 0)
        with pytest.raises(PenstockError) as caught:
            await it.ask(it.request(), before)
        words.append(caught.value.message)
    assert not [each for each in words if "/dev" in each or "Errno" in each or "fd" in each.split()]
