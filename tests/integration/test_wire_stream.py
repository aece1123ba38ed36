"""ModelStreamInfer over real sockets: order, errors in band, limits, and a caller who leaves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest

from penstock import errors
from penstock.channel import error_of
from penstock.oip import inference_pb2 as oip
from penstock.wire import Answer, Call
from penstock.wire.stream import IN_FLIGHT
from tests.harness.wire import STREAM, Held, channel_to, serving


def request(number: int, name: str = "digits") -> bytes:
    return oip.ModelInferRequest(model_name=name, id=str(number)).SerializeToString()


async def infer(call: Call) -> Answer:
    """Answers with the id; fails, slowly or crashing, for the models of those names."""
    message = oip.ModelInferRequest.FromString(call.payload)
    if message.model_name == "absent":
        raise errors.NotFound("model 'absent' is not deployed")
    if message.model_name == "broken":
        raise RuntimeError("secret path /etc")
    return Answer(oip.ModelInferResponse(model_name=message.model_name, id=message.id).SerializeToString())


async def responses(call: Any) -> list[oip.ModelStreamInferResponse]:
    return [oip.ModelStreamInferResponse.FromString(message) async for message in call]


async def test_one_response_per_request_in_order_with_errors_in_band() -> None:
    names = ["digits", "absent", "digits", "broken", "digits"]
    async with serving(infer) as address, channel_to(address) as channel:
        sent = [request(number, name) for number, name in enumerate(names)] + [b"\xff\xff"]
        answers = await responses(channel.stream_stream(STREAM)(iter(sent), timeout=60))
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2", "3", "4", ""]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False, True, False, True]
    assert answers[1].error_message == "model 'absent' is not deployed"
    assert answers[1].infer_response.model_name == "absent"
    assert "secret" not in answers[3].error_message
    finals = [answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers[:5]]
    assert finals == [True] * 5


async def test_answers_keep_the_order_of_requests_though_the_first_is_slowest() -> None:
    first = asyncio.Event()
    others = 0

    async def behaviour(call: Call) -> Answer:
        nonlocal others
        answer = await infer(call)
        if answer.payload == (await infer(Call("", request(0), 0))).payload:
            await first.wait()
        else:
            others += 1
            if others == 9:
                first.set()
        return answer

    async with serving(behaviour) as address, channel_to(address) as channel:
        sent = [request(number) for number in range(10)]
        answers = await responses(channel.stream_stream(STREAM)(iter(sent), timeout=60))
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(10)]


async def test_on_request_an_error_ends_the_stream_after_the_answers_before_it() -> None:
    release = asyncio.Event()

    async def behaviour(call: Call) -> Answer:
        try:
            answer = await infer(call)
        except errors.NotFound:
            release.set()
            raise
        await release.wait()
        return answer

    async with serving(behaviour) as address, channel_to(address) as channel:
        call = channel.stream_stream(STREAM)(timeout=60, metadata=(("triton_grpc_error", "true"),))
        for message in (request(0), request(1, "absent"), request(2)):
            await call.write(message)
        assert oip.ModelStreamInferResponse.FromString(await call.read()).infer_response.id == "0"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert isinstance(error_of(caught.value), errors.NotFound)


async def test_leaving_a_stream_cancels_all_that_is_under_way() -> None:
    begun, ended = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def behaviour(call: Call) -> Answer:
        begun.release()
        try:
            await asyncio.Event().wait()
        finally:
            ended.release()
        raise AssertionError

    async with serving(behaviour) as address, channel_to(address) as channel:
        call = channel.stream_stream(STREAM)(timeout=60)
        async with asyncio.timeout(30):
            for number in range(5):
                await call.write(request(number))
                await begun.acquire()
            call.cancel()
            for _ in range(5):
                await ended.acquire()


async def test_leaving_while_answers_wait_to_be_written_leaves_no_task(caplog: pytest.LogCaptureFixture) -> None:
    """The caller reads nothing, so the server stands in a write when the caller goes."""
    begun = asyncio.Semaphore(0)

    async def behaviour(call: Call) -> Answer:
        begun.release()
        return Answer(bytes(4 << 20))

    async with serving(behaviour) as address:
        before = asyncio.all_tasks()
        channel = channel_to(address)
        call = channel.stream_stream(STREAM)(timeout=60)
        async with asyncio.timeout(30):
            for number in range(8):
                await call.write(request(number))
                await begun.acquire()
            call.cancel()
            await channel.close()
            # All but the one in which the server waits for the next call.
            tasks = {task for task in asyncio.all_tasks() - before if "_request_call" not in repr(task)}
            if tasks:
                await asyncio.wait(tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_stream_has_a_limit_of_requests_under_way() -> None:
    under_way, most = 0, 0
    begun, release = asyncio.Semaphore(0), asyncio.Event()

    async def behaviour(call: Call) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        begun.release()
        await release.wait()
        under_way -= 1
        return await infer(call)

    async with serving(behaviour) as address, channel_to(address) as channel:
        call = channel.stream_stream(STREAM)(timeout=60)
        async with asyncio.timeout(60):
            for number in range(IN_FLIGHT * 2):
                await call.write(request(number))
            await call.done_writing()
            for _ in range(IN_FLIGHT):
                await begun.acquire()
            release.set()
            answers = [oip.ModelStreamInferResponse.FromString(message) async for message in call]
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(IN_FLIGHT * 2)]
    assert most == IN_FLIGHT


async def test_each_request_of_a_stream_has_a_deadline_of_its_own() -> None:
    held = Held()
    async with serving(held, default_timeout=0.1) as address, channel_to(address) as channel:
        answers = await responses(channel.stream_stream(STREAM)(iter([request(0), request(1)])))
    assert [answer.infer_response.id for answer in answers] == ["0", "1"]
    assert all("deadline" in answer.error_message for answer in answers)


async def test_no_request_of_a_stream_outlives_its_deadline() -> None:
    deadlines: list[float] = []

    async def behaviour(call: Call) -> Answer:
        deadlines.append(call.deadline)
        return await infer(call)

    async with serving(behaviour, default_timeout=1) as address, channel_to(address) as channel:
        call = channel.stream_stream(STREAM)(timeout=60)
        ends = asyncio.get_running_loop().time() + 60
        for number in range(2):
            await call.write(request(number))
            await call.read()
        await call.done_writing()
    assert len(set(deadlines)) == 1 and ends - 20 < deadlines[0] <= ends + 20
